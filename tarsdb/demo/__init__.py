"""The demonstration: this interpreter's own documentation as a searchable database.

``python -m tarsdb.demo`` runs it. Uses the public Python interface only.
"""
