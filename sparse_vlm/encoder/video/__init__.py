"""SparseFormers for video (docs/video/clips.md)."""
