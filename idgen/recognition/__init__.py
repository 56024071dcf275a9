"""What face recognisers are made of: networks and the optimiser that trains them."""
