"""Kills, crashes, faults, full disks and broken files, at random and seeded: `make chaos`."""
