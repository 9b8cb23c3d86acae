"""First floor: stages that turn media and captions into features. Arrays in, arrays out."""
