"""Models of the database: created, loaded, called, their results and packed weights kept."""
