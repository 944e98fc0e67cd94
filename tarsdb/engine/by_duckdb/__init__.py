"""What DuckDB answers: queries over scans of the same snapshot; its values and errors as ours."""
