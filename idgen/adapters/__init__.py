"""Identity adapters: what turns a face vector into tokens that the layers of a UNet look at."""
