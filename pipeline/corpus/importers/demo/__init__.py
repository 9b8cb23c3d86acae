"""The demo corpus, rendered by the project itself: moving, interacting coloured shapes with captions."""
