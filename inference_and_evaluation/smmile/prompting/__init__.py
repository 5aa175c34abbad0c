"""Conversations: how a problem is put to a model, and how its chosen option is read from a response."""
