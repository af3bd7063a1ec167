# A throw-away PostgreSQL server for the tests. Sourced after setup.bash.

# Runs a command as somebody who may run the server, which root may not.
as_server() {
  if [ "$(id -u)" = 0 ]; then
    setpriv --reuid postgres --regid postgres --init-groups env HOME="$postgres_dir" "$@"
  else
    "$@"
  fi
}

# Starts the server and sets SBP_TEST_POSTGRES to its URL; it ends with this shell.
start_postgres() {
  # Debian keeps the server's programs out of PATH.
  local bin
  bin=$(find_postgres)
  if [ -z "$bin" ]; then
    install postgresql
    bin=$(find_postgres)
    [ -n "$bin" ] || die "there is no initdb in PATH or /usr/lib/postgresql after installing postgresql"
  fi
  postgres_dir=$(mktemp -d)
  postgres_bin=$bin
  trap stop_postgres EXIT
  [ "$(id -u)" != 0 ] || chown postgres: "$postgres_dir"
  local log="$postgres_dir/log" data="$postgres_dir/data" port
  as_server "$bin/initdb" -D "$data" -U sbp -A trust -E UTF8 --locale=C --no-sync >"$log.init" 2>&1 ||
    die "initdb fails: $(tail -n 3 "$log.init")"
  # Another process may take the port first; then the next one is tried.
  for _ in 1 2 3 4 5; do
    port=$(shuf -i 20000-60000 -n 1)
    local options="-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories=''"
    options+=" -c fsync=off -c max_connections=300"
    if (cd / && as_server "$bin/pg_ctl" -D "$data" -l "$log" -w -t 30 -o "$options" start) >/dev/null 2>&1; then
      export SBP_TEST_POSTGRES="postgres://sbp@127.0.0.1:$port/postgres"
      say "a PostgreSQL server listens on port $port"
      return 0
    fi
  done
  die "the PostgreSQL server does not start: $(as_server tail -n 3 "$log")"
}

stop_postgres() {
  (cd / && as_server "$postgres_bin/pg_ctl" -D "$postgres_dir/data" -m immediate stop) >/dev/null 2>&1 || true
  rm -rf "$postgres_dir"
}

# The folder of the newest server's programs; nothing when there is none.
find_postgres() {
  local newest
  newest=$(find /usr/lib/postgresql -path '*/bin/initdb' 2>/dev/null | sort -V | tail -n 1)
  [ -n "$newest" ] || newest=$(command -v initdb || true)
  [ -z "$newest" ] || dirname "$(readlink -f "$newest")"
}
