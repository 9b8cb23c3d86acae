"""An extractor and a method for crossreel."""
