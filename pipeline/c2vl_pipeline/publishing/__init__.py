"""What is given away of a work folder: a dataset folder with a card, and tar shards for streaming."""
