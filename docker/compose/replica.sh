#!/bin/bash
# A streaming replica of the host `primary`: copies it the first time, and follows it from then on.
set -eu
export PGPASSWORD=$REPLICATION_PASSWORD
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    until pg_basebackup -h primary -U replicator -D "$PGDATA" -R -X stream -c fast; do
        rm -rf "${PGDATA:?}"/*
        sleep 1
    done
    chmod 700 "$PGDATA"
fi
exec postgres
