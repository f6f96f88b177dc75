"""Four Ray programs that feed, train, judge and host the model."""
