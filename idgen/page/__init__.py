"""What stands behind the page of `idgen app`: its models, its looks at photos, its manners; no layout."""
