# A throw-away PostgreSQL server for the tests. Sourced after setup.bash.

# Runs a command as somebody who may run the server, which root may not.
as_server() {
  if [ "$(id -u)" = 0 ]; then
    setpriv --reuid postgres --regid postgres --init-groups env HOME="$postgres_dir" "$@"
  else
    "$@"
  fi
}

# Starts two servers and sets the variables that the tests know: SBP_TEST_POSTGRES is the URL of one
# that stays up; SBP_TEST_RESTART stops the one of SBP_TEST_RESTART_URL and starts it again a little
# later. They end with this shell.
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
  start_server steady
  export SBP_TEST_POSTGRES="$server_url"
  start_server restarted
  export SBP_TEST_RESTART_URL="$server_url"
  local restart="$postgres_dir/restart"
  {
    echo "#!/usr/bin/env bash"
    echo "cd /; postgres_dir='$postgres_dir'; $(declare -f as_server)"
    echo "as_server '$bin/pg_ctl' -D '$server_data' -m immediate -w stop && sleep 1 &&"
    echo "as_server '$bin/pg_ctl' -D '$server_data' -l '$server_data.log' -w -t 30 -o \"$server_options\" start >/dev/null 2>&1"
  } >"$restart"
  export SBP_TEST_RESTART="bash $restart"
}

# Starts a server with a folder of its own and sets server_url, server_data and server_options.
start_server() {
  local log="$postgres_dir/$1.log" port
  server_data="$postgres_dir/$1"
  as_server "$postgres_bin/initdb" -D "$server_data" -U sbp -A trust -E UTF8 --locale=C --no-sync >"$log.init" 2>&1 ||
    die "initdb fails: $(tail -n 3 "$log.init")"
  # Another process may take the port first; then the next one is tried.
  for _ in 1 2 3 4 5; do
    port=$(shuf -i 20000-60000 -n 1)
    server_options="-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories=''"
    server_options+=" -c fsync=off -c max_connections=300"
    if (cd / && as_server "$postgres_bin/pg_ctl" -D "$server_data" -l "$log" -w -t 30 -o "$server_options" start) >/dev/null 2>&1; then
      server_url="postgres://sbp@127.0.0.1:$port/postgres"
      say "a PostgreSQL server listens on port $port"
      return 0
    fi
  done
  die "the PostgreSQL server does not start: $(as_server tail -n 3 "$log")"
}

stop_postgres() {
  local name
  for name in steady restarted; do
    (cd / && as_server "$postgres_bin/pg_ctl" -D "$postgres_dir/$name" -m immediate stop) >/dev/null 2>&1 || true
  done
  rm -rf "$postgres_dir"
}

# The folder of the newest server's programs; nothing when there is none.
find_postgres() {
  local newest
  newest=$(find /usr/lib/postgresql -path '*/bin/initdb' 2>/dev/null | sort -V | tail -n 1)
  [ -n "$newest" ] || newest=$(command -v initdb || true)
  [ -z "$newest" ] || dirname "$(readlink -f "$newest")"
}
