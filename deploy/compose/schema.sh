#!/bin/sh
# Creates or updates the tables of both databases. Safe to run again: `compose up` does each time.
set -eu

host=postgresql
schemas=/etc/temporal/schema/postgresql/v12

sql() {
    temporal-sql-tool --plugin postgres12 --ep "$host" --port 5432 --user temporal --db "$@"
}

# update_schema DATABASE FOLDER
update_schema() {
    sql "$1" create # says nothing when it is there
    # A database without version tables cannot be updated: it is new, and is given them first.
    if ! sql "$1" update-schema --schema-dir "$schemas/$2/versioned"; then
        sql "$1" setup-schema --version 0.0
        sql "$1" update-schema --schema-dir "$schemas/$2/versioned"
    fi
}

update_schema temporal temporal
update_schema temporal_visibility visibility
