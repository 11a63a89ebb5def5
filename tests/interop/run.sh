#!/usr/bin/env bash
# Runs published clients against a running broker. See README.md beside this file.
set -uo pipefail

usage() {
    cat <<'USAGE'
usage: run.sh NAMESRV_ADDR [Java client versions…] [options]
  --clients A,B,…          of java, go and node (default all; java if --only or a version is given)
  --only A,B,…             these scenarios instead of all; of one client
  --codec json|rocketmq|both   header codec of the Java clients (default both)
  --brokers N              fail unless the route that Java clients see names N brokers (shards)
  --phase before|after     only the two halves of the offsets scenario; restart the broker between them
  --run-id ID              run id; `after` needs that of `before` and finds it by itself in the same clone
  --restart COMMAND        kills the broker and returns when it is back: for the scenario that wants this
  --tool PROGRAM           the built `ringmq`: for the scenarios that need what no client can do
  --native PROGRAM         the built interop_native: for the scenario of what Java and the native client exchange
  --reference              the broker is Apache's: leave out what RingMQ promises beyond it
Java client versions default to 5.3.3 and 4.9.8. Exit code 0: nothing failed, or it was skipped (and says so); 1: a check
failed; 2: wrong arguments.
USAGE
}

fail_usage() { echo "$1" >&2; usage >&2; exit 2; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
java_dir=$here/java go_dir=$here/go node_dir=$here/node
versions=() clients="" only=all codecs="JSON ROCKETMQ" brokers="" phase="" run_id="" reference=false namesrv="" restart="" native="" tool=""
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) usage; exit 0 ;;
        --reference) reference=true ;;
        --clients | --only | --codec | --brokers | --phase | --run-id | --restart | --native | --tool)
            [ $# -ge 2 ] || fail_usage "$1 needs a value"
            case $1 in
                --clients) clients=${2//,/ } ;;
                --only) only=$2 ;;
                --codec)
                    case $2 in
                        json) codecs=JSON ;;
                        rocketmq) codecs=ROCKETMQ ;;
                        both) ;;
                        *) fail_usage "no codec $2" ;;
                    esac ;;
                --brokers) brokers=$2 ;;
                --phase)
                    case $2 in before | after) phase=$2 ;; *) fail_usage "no phase $2" ;; esac ;;
                --run-id) run_id=$2 ;;
                --restart) restart=$2 ;;
                --native) native=$2 ;;
                --tool) tool=$2 ;;
            esac
            shift ;;
        -*) fail_usage "no option $1" ;;
        *) if [ -z "$namesrv" ]; then namesrv=$1; else versions+=("$1"); fi ;;
    esac
    shift
done
[ -n "$namesrv" ] || fail_usage "which name server?"
if [ -z "$clients" ]; then
    # Java's half of the offsets comes last: it ends with commits that wait for the disk, and all before them is there then.
    clients="go node java"
    [ "$only" = all ] && [ ${#versions[@]} = 0 ] || clients=java
fi
for client in $clients; do
    case $client in java | go | node) ;; *) fail_usage "no client $client" ;; esac
done
[ "$only" = all ] || [ "$(wc -w <<<"$clients")" = 1 ] || fail_usage "--only is for one client: scenarios of others have other names"
[ ${#versions[@]} -gt 0 ] || versions=(5.3.3 4.9.8)

# Two runs at once must not build into one directory: the lock is held for as long as the subshell lives.
lock() {
    mkdir -p "$1/target"
    exec 9>"$1/target/build.lock"
    ! command -v flock >/dev/null || flock 9
}

# Each build ends with 0, or with 1 if the suite does not build, or says why it is skipped and ends with 3.
skip() { echo "skipped: $1"; exit 3; }

build_java() (
    command -v java >/dev/null || skip "java: no java on this machine"
    feature=$(java -XshowSettings:properties -version 2>&1 | sed -n 's/^ *java.specification.version = //p')
    [ "${feature%%.*}" -ge 17 ] 2>/dev/null || skip "java: ${feature:-a version that is unknown} is older than 17"
    lock "$java_dir"
    for version in "${versions[@]}"; do
        out=$java_dir/target/$version
        if [ -f "$out/complete" ] && [ -z "$(find "$java_dir/pom.xml" "$java_dir/src" -newer "$out/complete" -print -quit)" ]; then
            continue
        fi
        command -v mvn >/dev/null || skip "java: no Maven (mvn) on this machine"
        log=$java_dir/target/build-$version.log
        mvn=(mvn -B -q -Dstyle.color=never -f "$java_dir/pom.xml" "-Drocketmq.version=$version" clean package)
        # From the local repository if it has everything, else from the registry.
        if ! "${mvn[@]}" -o >"$log" 2>&1 && ! "${mvn[@]}" >"$log" 2>&1; then
            if grep -qE 'Could not (resolve|transfer|find artifact)|PluginResolutionException|DependencyResolutionException' "$log"; then
                grep -m1 -E 'Could not (resolve|transfer|find artifact)' "$log" | cut -c1-300
                skip "java: Maven cannot get the client $version or a plugin from its registry (log in target/build-$version.log)"
            fi
            cat "$log"
            echo "the interop suite does not build for client $version"
            exit 1
        fi
        touch "$out/complete"
    done
)

build_go() (
    command -v go >/dev/null || skip "go: no Go on this machine"
    lock "$go_dir"
    log=$go_dir/target/build.log
    (cd "$go_dir" && go build -o target/interop .) >"$log" 2>&1 && exit 0
    cat "$log"
    ! grep -qE 'dial tcp|no such host|proxyconnect|connection refused|i/o timeout|module lookup disabled' "$log" ||
        skip "go: a module cannot be had from the proxy"
    echo "the interop suite does not build for Go"
    exit 1
)

build_node() (
    command -v node >/dev/null && command -v npm >/dev/null || skip "node: no Node.js with npm on this machine"
    [ "$(node -p 'parseInt(process.versions.node)')" -ge 18 ] || skip "node: $(node --version) is older than 18"
    lock "$node_dir"
    installed=$node_dir/node_modules/.package-lock.json
    [ ! -f "$installed" ] || [ "$installed" -ot "$node_dir/package-lock.json" ] || exit 0
    log=$node_dir/target/install.log
    (cd "$node_dir" && npm ci --prefer-offline --ignore-scripts) >"$log" 2>&1 && exit 0
    cat "$log"
    ! grep -qE 'ENOTFOUND|EAI_AGAIN|ETIMEDOUT|ECONNREFUSED|ECONNRESET|network' "$log" || skip "node: npm cannot reach its registry"
    echo "the interop suite does not install for Node.js"
    exit 1
)

# Runs against several brokers at once must not take each other's.
mkdir -p "$java_dir/target"
id_file=$java_dir/target/run-id-${namesrv//[^A-Za-z0-9.]/-}
if [ -z "$run_id" ] && [ "$phase" = after ]; then
    [ -f "$id_file" ] || fail_usage "--phase after: no --phase before was run here, and no --run-id given"
    run_id=$(cat "$id_file")
fi
[ -n "$run_id" ] || run_id=$(date +%s)-$$
[ "$phase" != before ] || echo "$run_id" >"$id_file"
case $phase in before) only=offsets_save ;; after) only=offsets_check ;; esac

output=$(mktemp -d)
trap 'rm -rf "$output"' EXIT
passed=0 failed=0 broken=0 skipped=0

# Runs a suite: how it is called here, then its command.
suite() {
    local name=$1 out
    out=$(mktemp -p "$output")
    shift
    echo "== $name"
    "$@" 2>"$out.err" | tee "$out"
    count "$name" "$out"
}

# Adds what a suite printed to what is known.
count() {
    # The count line is the last one; without it the process died.
    if [[ $(tail -n 1 "$2") =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
        passed=$((passed + BASH_REMATCH[1])) failed=$((failed + BASH_REMATCH[2]))
    else
        broken=$((broken + 1))
        echo "FAIL $1: ended without its count"
        head -c 2000 "$2.err"
    fi
}

java_options() {
    options=("-Drocketmq.serialize.type=$2" "-Dinterop.dir=$java_dir/target/$1/run-$2" "-Dinterop.reference=$reference")
    [ -z "$brokers" ] || options+=("-Dinterop.brokers=$brokers")
    [ -z "$restart" ] || options+=("-Dinterop.restart=$restart")
    [ -z "$native" ] || options+=("-Dinterop.native=$native")
    [ -z "$tool" ] || options+=("-Dinterop.tool=$tool")
}

# The client, its header codec, and the scenarios.
java_suite() {
    local options
    java_options "$1" "$2"
    java -Xmx512m "${options[@]}" -cp "$java_dir/target/$1/interop.jar:$java_dir/target/$1/lib/*" \
        ringmq.interop.Main "$namesrv" "$3" "$run_id-${1//./}-${2:0:1}"
}

# The versions side by side, as most of the time they wait; each with one codec after the other. Printed as one after the other.
run_java() {
    local version codec
    for codec in $codecs; do
        for version in "${versions[@]}"; do
            java_suite "$version" "$codec" "$only" >"$output/$version" 2>"$output/$version.err" &
        done
        wait
        for version in "${versions[@]}"; do
            echo "== client $version, codec $codec"
            cat "$output/$version"
            count "client $version, codec $codec" "$output/$version"
        done
    done
    [ "$only" = all ] || return 0
    for version in "${versions[@]}"; do
        [ -z "$native" ] || suite "client $version, with the native client" java_suite "$version" JSON native_compression
    done
    # Alone, as it takes the broker away from all others.
    [ -n "$restart" ] || return 0
    for version in "${versions[@]}"; do
        suite "client $version, under a restart" java_suite "$version" JSON orderly_restart,pop_restart
    done
}

go_suite() {
    # Where the client keeps the offsets of broadcasting consumers.
    suite "Go client $(sed -n 's/^require .*rocketmq-client-go\/v2 //p' "$go_dir/go.mod")" \
        env "rocketmq.client.localOffsetStoreDir=$output/go-offsets" "INTEROP_TOOL=$tool" "INTEROP_RESTART=$restart" \
        "$go_dir/target/interop" "$namesrv" "$1" "$run_id"
}

run_go() {
    go_suite "$only"
    [ "$only" != all ] || [ -z "$restart" ] || go_suite orderly_restart
}

run_node() { suite "Node.js client" env "INTEROP_TOOL=$tool" node "$node_dir/interop.js" "$namesrv" "$only" "$run_id"; }

for client in $clients; do
    "build_$client"
    case $? in
        0) "run_$client" ;;
        3) skipped=$((skipped + 1)) ;;
        *) broken=$((broken + 1)) ;;
    esac
done
echo "== all: $passed passed, $((failed + broken)) failed"
[ $((failed + broken)) = 0 ] && { [ "$passed" -gt 0 ] || [ "$skipped" -gt 0 ]; }
