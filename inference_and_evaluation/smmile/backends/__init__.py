"""What can answer a request. A back end takes requests and gives replies; it knows nothing of scores."""
