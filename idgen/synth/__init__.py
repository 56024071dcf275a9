"""New people: identities that are nobody's, far apart from each other."""
