#!/bin/sh
# What people and scripts ordinarily do with psql, pg_dump and pgbench. usage: psql.sh HOST PORT DATABASE [CA]
set -u
export PGHOST="$1" PGPORT="$2" PGDATABASE="$3" PGUSER=app PGPASSWORD="secret of app" PGSSLMODE=disable LC_ALL=C
if [ $# -gt 3 ]; then export PGSSLMODE=verify-full PGSSLROOTCERT="$4"; fi
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT

die() { printf 'psql: %s\n' "$*" >&2; exit 1; }
same() { [ "$1" = "$2" ] || die "$3: got [$1], wanted [$2]"; }
run() { psql -XAtq -v ON_ERROR_STOP=1 "$@"; }

# Queries, variables, several statements, \gset, \gexec, \if.
same "$(run -c "select 1, null, 'n' || chr(228), '\\x00ff'::bytea, array[1,null,3], 1.50::numeric" | tr -d '\n')" \
    "1||n$(printf '\303\244')|\\x00ff|{1,NULL,3}|1.50" "values"
same "$(run -c 'select 1; select 2')" "$(printf '1\n2')" "two statements"
printf '%s\n' "select 40 + 2 as n \\gset" "\\if :{?n}" "select :n, :'n';" "\\endif" "select 'select ' || n from generate_series(1,3) n \\gexec" \
    >"$dir/script"
same "$(run -f "$dir/script" | tr '\n' ' ')" "42|42 1 2 3 " "script"

# A table, what \d says of it, \copy in and out, COPY through pipes.
run -c 'create table shop (id int primary key, name text not null, price numeric(10,2) default 0)' || die "create"
same "$(run -c '\d shop' | cut -d '|' -f 1-2 | head -n 3 | tr '\n' ' ')" "id|integer name|text price|numeric(10,2) " "\\d"
run -c '\d+ shop' -c '\dt' -c '\l' -c '\du' -c '\df' -c '\dn+' -c '\conninfo' >"$dir/described" || die "describing"
i=0
while [ $i -lt 500 ]; do i=$((i + 1)); printf '%d\tname %d\t%d.50\n' $i $i $i; done >"$dir/rows"
run -c "\\copy shop from '$dir/rows'" || die "\\copy from"
run -c "\\copy (select * from shop order by id) to '$dir/out'" || die "\\copy to"
cmp -s "$dir/rows" "$dir/out" || die "\\copy gives back other rows"
same "$(run -c 'copy shop to stdout' | wc -l | tr -d ' ')" 500 "copy to stdout"
printf '501\tx\t1\n' | run -c 'copy shop from stdin' || die "copy from stdin"
psql -Xq -c '\copy shop (id) from stdin' </dev/null || die "an empty copy"
printf 'x\n' | psql -Xq -c 'copy shop (id) from stdin' 2>"$dir/error" && die "a copy of rubbish succeeds"
grep -q 'invalid input syntax for type integer: "x"' "$dir/error" || die "copy of rubbish: $(cat "$dir/error")"

# Transactions, savepoints, errors.
run -1 -c 'delete from shop' -c 'select 1/0' 2>/dev/null && die "a failed transaction succeeds"
same "$(run -c 'select count(*) from shop')" 501 "rolled back"
same "$(psql -XAtq -v ON_ERROR_ROLLBACK=on -c 'begin' -c 'select 1/0' -c 'select 5' -c 'commit' 2>/dev/null)" 5 "ON_ERROR_ROLLBACK"
psql -XAtq -v VERBOSITY=verbose -c 'selec 1' 2>"$dir/error" && die "a syntax error succeeds"
grep -q '^ERROR:  42601: syntax error at or near "selec"$' "$dir/error" || die "syntax error: $(cat "$dir/error")"
grep -q '^LINE 1: selec 1$' "$dir/error" || die "place of the error: $(cat "$dir/error")"

# Rows by cursor, large values.
same "$(run -v FETCH_COUNT=100 -c 'select id from shop' | wc -l | tr -d ' ')" 501 "FETCH_COUNT"
for size in 1 100 8192 65536 1048576 16777216; do
    same "$(run -c "select repeat('x', $size)" | tr -d '\n' | wc -c | tr -d ' ')" $size "a row of $size bytes"
done

# Prepared statements of SQL, and of the protocol where this psql can.
same "$(run -c 'prepare p(int) as select $1 + 1; execute p(1); deallocate p')" 2 "PREPARE"
if [ "$(psql --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')" -ge 16 ]; then
    printf '%s\n' "select \$1::int + 1 \\bind 4 \\g" >"$dir/script"
    same "$(run -f "$dir/script")" 5 "\\bind"
fi

# Ctrl-C in a long query.
started=$(date +%s)
timeout -s INT 1 psql -Xq -v VERBOSITY=verbose -c 'select pg_sleep(60)' 2>"$dir/error" && die "a cancelled query succeeds"
[ $(($(date +%s) - started)) -lt 30 ] || die "the cancel request does nothing"
grep -q '57014: canceling statement due to user request' "$dir/error" || die "cancel: $(cat "$dir/error")"

# Other databases and \connect.
psql -X -d nowhere -c 'select 1' 2>"$dir/error" && die "a database that does not exist"
grep -q 'FATAL:  database "nowhere" does not exist' "$dir/error" || die "no such database: $(cat "$dir/error")"
same "$(run -c '\c -' -c 'select current_database()')" "$PGDATABASE" "\\c"

# pg_dump sets and locks all the session long; a restore into another schema gives the same rows.
pg_dump --no-owner -t shop >"$dir/dump" 2>"$dir/error" || die "pg_dump: $(cat "$dir/error")"
run -c 'alter table shop rename to old_shop' -c 'alter index shop_pkey rename to old_shop_pkey'
run -f "$dir/dump" >/dev/null || die "the dump cannot be restored"
same "$(run -c 'select count(*) from (table shop except table old_shop) x')" 0 "dump and restore"
same "$(run -c 'select count(*) from shop')" 501 "rows restored"
pg_dump -Fc -t shop -f "$dir/custom" && run -c 'drop table shop' && pg_restore -1 -d "$PGDATABASE" "$dir/custom" || die "pg_restore"
same "$(run -c 'select count(*) from shop')" 501 "rows restored by pg_restore"
pg_dump -Fd -j 2 -f "$dir/parallel" 2>"$dir/error" || die "a parallel pg_dump: $(cat "$dir/error")"

# pgbench in each mode, more clients than servers.
if command -v pgbench >/dev/null; then
    pgbench -iq >/dev/null 2>"$dir/error" || die "pgbench -i: $(cat "$dir/error")"
    for mode in simple extended prepared; do
        pgbench -n -c 20 -t 20 -M $mode >"$dir/out" 2>&1 || die "pgbench $mode: $(cat "$dir/out")"
        grep -q 'processed: 400/400' "$dir/out" || die "pgbench $mode: $(cat "$dir/out")"
    done
    pgbench -n -c 20 -t 3 -C -S >"$dir/out" 2>&1 || die "pgbench -C: $(cat "$dir/out")"
fi
psql --version
