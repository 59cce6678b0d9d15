#!/usr/bin/env bash
# Runs etcdctl's quick start, and what else a user tries on the first day, against an empty server:
#
#     quickstart.sh ETCDCTL ENDPOINT
#
# Prints each command with its answer. Names replace what may differ between two right servers: ids, times, sizes, log
# positions, terms, versions and the endpoint. So diff can compare the outputs for stock etcd and for Orlop. A command
# that fails is part of the output, with its exit status. Only a watch that does not deliver stops the script.
set -euo pipefail
[[ $# -eq 2 ]] || { echo "usage: quickstart.sh ETCDCTL ENDPOINT" >&2; exit 2; }
etcdctl=$1 endpoint=$2
dir=$(mktemp -d)
watcher=
finish() {
    [[ -z $watcher ]] || kill "$watcher" 2>"$dir/kill" || true
    rm -rf "$dir"
}
trap finish EXIT

normal() {
    sed -E \
        -e "s#${endpoint#*://}#ENDPOINT#g; s#https?://ENDPOINT#ENDPOINT#g; s#http://[0-9.]+:[0-9]+#URL#g" \
        -e 's/"(cluster_id|member_id|leader|ID)":[0-9]+/"\1":ID/g' \
        -e 's/"(raft_term|raftTerm|raftIndex|raftAppliedIndex)":[0-9]+/"\1":N/g' \
        -e 's/^"(ClusterID|MemberID|Leader)" : [0-9]+/"\1" : ID/; s/^"(RaftTerm)" : [0-9]+/"\1" : N/' \
        -e 's/"(dbSize|dbSizeInUse)":[0-9]+/"\1":BYTES/g; s/"(version|storageVersion)":"[^"]*"/"\1":"VERSION"/g' \
        -e 's/took (= )?[0-9.]+(ms|µs|s)/took TIME/; s/remaining\([0-9]+s\)/remaining(TIME)/' \
        -e "${lease:+s/$lease/LEASE/g}" \
        -e 's/"ts":"[^"]*"/"ts":"TIME"/g; s/0x[0-9a-f]+/POINTER/g; s/127\.0\.0\.1:[0-9]+/ADDRESS/g'
}

# run ARGUMENT..: runs one etcdctl command, which reads this function's input.
run() {
    echo "\$ etcdctl $*" | normal
    local status=0
    "$etcdctl" --endpoints "$endpoint" "$@" >"$dir/out" 2>"$dir/err" || status=$?
    normal <"$dir/out"
    # etcdctl's own log lines tell of its connection, not of the server's answer.
    grep -v '^{"level"' "$dir/err" | normal || true
    [[ $status -eq 0 ]] || echo "exit status $status"
}

# fields NAME|NAME..: prints these fields of the last answer, which came as fields.
fields() { grep -E "^\"($1)\"" "$dir/out" | normal; }

lease=

echo "== put, get"
run put foo bar
run get foo
run put foo1 bar1
run put foo2 bar2
run put foo3 bar3
run get foo foo3
run get --prefix foo
run get --prefix --limit=2 foo
run get --from-key foo2
run get --prefix --order=DESCEND --sort-by=KEY foo
run get --prefix --keys-only foo
run get --prefix --count-only --write-out=fields foo
run get --print-value-only foo
run get --hex foo
run get nothing
run put foo bar-new
run put --prev-kv foo bar-newest
run get --rev=2 foo
run get --rev=1000000 foo
run get --prefix --write-out=json foo
run get --stream --prefix foo
run get --consistency=s foo
run put --ignore-value nothing

echo "== del"
run put zoo val
run put zoo1 val1
run put zoo2 val2
run del foo
run del --prev-kv zoo
run del --prefix zoo
run del --from-key zzz
run del nothing

echo "== txn"
run put user1 bad
run txn --interactive=false <<'TXN'
value("user1") = "bad"

del user1

put user1 good

TXN
run txn <<'TXN'
mod("foo1") > "1"
create("user1") = "0"

put user1 created
get foo1

get user1

TXN
run txn <<'TXN'
version("user1") = "9"

put user1 never

get user1

TXN
run txn <<'TXN'


put twice 1
put twice 2


TXN

echo "== watch"
run put watched 1
from=$("$etcdctl" --endpoints "$endpoint" get watched --write-out=json | sed -E 's/.*"mod_revision":([0-9]+).*/\1/')
run put watched 2
run del watched
run put watched-end end
"$etcdctl" --endpoints "$endpoint" watch --prefix --prev-kv --rev="$from" watched >"$dir/watch" 2>"$dir/watch-err" &
watcher=$!
for _ in $(seq 200); do
    grep -q '^end$' "$dir/watch" && break
    sleep 0.05
done
echo '$ etcdctl watch --prefix --prev-kv --rev=N watched'
cat "$dir/watch"
grep -q '^end$' "$dir/watch" || { echo "quickstart.sh: the watch did not deliver" >&2; exit 1; }
kill "$watcher"
wait "$watcher" 2>"$dir/kill" || true
watcher=

echo "== lease"
granted=$("$etcdctl" --endpoints "$endpoint" lease grant 300)
lease=$(awk '{print $2}' <<<"$granted")
echo '$ etcdctl lease grant 300'
normal <<<"$granted"
run put --lease="$lease" leased value
run get leased
run lease timetolive "$lease"
run lease timetolive --keys "$lease"
run lease list
run lease keep-alive --once "$lease"
run lease revoke "$lease"
run get leased
run lease timetolive "$lease"
run lease revoke "$lease"
run put --lease=1234 leased value
lease=

echo "== compaction"
run put c 1
run put c 2
revision=$("$etcdctl" --endpoints "$endpoint" get c --write-out=json | sed -E 's/.*"revision":([0-9]+).*/\1/')
run compaction "$((revision - 1))"
run get --rev=2 foo1
run compaction "$((revision - 1))"
run compaction --physical "$revision"
run compaction 1000000
run get --prefix ""

echo "== cluster and maintenance"
run endpoint health
run endpoint status --write-out=fields >"$dir/status"
fields 'ClusterID|Leader|IsLearner|DBSizeQuota|Errors|DowngradeEnabled|DowngradeTargetVersion'
run endpoint hashkv
run member list --write-out=json
run alarm list
run defrag

echo "== locks and elections"
run lock quick-lock echo locked
run get --prefix --count-only --write-out=fields quick-lock
