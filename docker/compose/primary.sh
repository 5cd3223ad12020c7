#!/bin/sh
# Run once, by the image, when the primary's data directory is made.
set -eu
psql -v ON_ERROR_STOP=1 -U postgres \
    -v app_password="$APP_PASSWORD" -v replication_password="$REPLICATION_PASSWORD" <<'SQL'
create role app login password :'app_password';
create role replicator login replication password :'replication_password';
create database shop owner app;
SQL
echo 'host replication replicator samenet scram-sha-256' >>"$PGDATA/pg_hba.conf"
