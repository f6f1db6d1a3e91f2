"""The page's part for videos: a clip or a webcam plays with its RoIs moving, and answers questions meanwhile."""
