"""What the demo runs on: a small encoder and a few thousand labelled sentences, taken from Python packages."""
