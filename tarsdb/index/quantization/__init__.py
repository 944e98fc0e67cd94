"""Short codes of vectors, with distances from a query to them. Knows no storage and no SQL."""
