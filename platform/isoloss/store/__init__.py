"""Postgres: the only state there is. One file an aggregate, SQL beside its function, psycopg 3, no ORM."""
