"""Rows read without DuckDB: which index, which rows, predicates column by column."""
