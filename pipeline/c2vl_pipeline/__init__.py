"""The prompt factory: raw videos and skeleton files in, packed training arrays out, one command per stage."""
