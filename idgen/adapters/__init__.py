"""Identity adapters: what turns a face vector or a W+ code into tokens that the layers of a UNet look at."""
