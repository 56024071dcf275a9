"""What face recognisers are made of and trained with: networks, heads, labelled pictures, optimisers."""
