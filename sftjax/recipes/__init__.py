"""Whole runs assembled from the rooms below, one file a task; the command line calls these."""
