"""What training minimises: terms with one value a row, which the programs weigh and add up."""
