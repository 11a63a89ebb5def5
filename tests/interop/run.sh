#!/usr/bin/env bash
# Runs the published Java clients against a running broker. See README.md beside this file.
set -uo pipefail

usage() {
    cat <<'USAGE'
usage: run.sh NAMESRV_ADDR [client versions…] [options]
  --only A,B,…             these scenarios instead of all
  --codec json|rocketmq|both   header codec of the clients (default both)
  --brokers N              fail unless the route names N brokers (shards)
  --phase before|after     only the two halves of the offsets scenario; restart the broker between them
  --run-id ID              run id; `after` needs that of `before` and finds it by itself in the same clone
  --reference              the broker is Apache's: leave out what RingMQ promises beyond it
Client versions default to 5.3.3 and 4.9.8. Exit code 0: nothing failed, or it was skipped (and says so); 1: a check
failed; 2: wrong arguments.
USAGE
}

fail_usage() { echo "$1" >&2; usage >&2; exit 2; }
skip() { echo "skipped: $1"; exit 0; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
java_dir=$here/java
versions=() only=all codecs="JSON ROCKETMQ" brokers="" phase="" run_id="" reference=false namesrv=""
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) usage; exit 0 ;;
        --reference) reference=true ;;
        --only | --codec | --brokers | --phase | --run-id)
            [ $# -ge 2 ] || fail_usage "$1 needs a value"
            case $1 in
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
            esac
            shift ;;
        -*) fail_usage "no option $1" ;;
        *) if [ -z "$namesrv" ]; then namesrv=$1; else versions+=("$1"); fi ;;
    esac
    shift
done
[ -n "$namesrv" ] || fail_usage "which name server?"
[ ${#versions[@]} -gt 0 ] || versions=(5.3.3 4.9.8)

command -v java >/dev/null || skip "no java on this machine"
feature=$(java -XshowSettings:properties -version 2>&1 | sed -n 's/^ *java.specification.version = //p')
[ "${feature%%.*}" -ge 17 ] 2>/dev/null || skip "java ${feature:-of unknown version} is older than 17"

# Builds one client version, from the local Maven repository if it has everything, else from the registry.
build() {
    local out=$java_dir/target/$1
    mkdir -p "$java_dir/target"
    # Two runs at once must not build into one directory.
    exec 9>"$java_dir/target/build.lock"
    ! command -v flock >/dev/null || flock 9
    if [ -f "$out/complete" ] && [ -z "$(find "$java_dir/pom.xml" "$java_dir/src" -newer "$out/complete" -print -quit)" ]; then
        return
    fi
    command -v mvn >/dev/null || skip "no Maven (mvn) on this machine"
    local log=$java_dir/target/build-$1.log
    local mvn=(mvn -B -q -Dstyle.color=never -f "$java_dir/pom.xml" "-Drocketmq.version=$1" clean package)
    if ! "${mvn[@]}" -o >"$log" 2>&1 && ! "${mvn[@]}" >"$log" 2>&1; then
        if grep -qE 'Could not (resolve|transfer|find artifact)|PluginResolutionException|DependencyResolutionException' "$log"; then
            grep -m1 -E 'Could not (resolve|transfer|find artifact)' "$log" | cut -c1-300
            skip "Maven cannot get the client $1 or a plugin from its registry (log in target/build-$1.log)"
        fi
        cat "$log"
        echo "the interop suite does not build for client $1"
        exit 1
    fi
    touch "$out/complete"
}

for version in "${versions[@]}"; do build "$version"; exec 9>&-; done

# Runs against several brokers at once must not take each other's.
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
passed=0 failed=0 broken=0
for version in "${versions[@]}"; do
    for codec in $codecs; do
        echo "== client $version, codec $codec"
        out=$output/$version-$codec
        options=("-Drocketmq.serialize.type=$codec" "-Dinterop.dir=$java_dir/target/$version/run" "-Dinterop.reference=$reference")
        [ -z "$brokers" ] || options+=("-Dinterop.brokers=$brokers")
        java -Xmx512m "${options[@]}" -cp "$java_dir/target/$version/interop.jar:$java_dir/target/$version/lib/*" \
            ringmq.interop.Main "$namesrv" "$only" "$run_id-${version//./}-${codec:0:1}" 2>"$out.err" | tee "$out"
        # The count line is the last one; without it the process died.
        if [[ $(tail -n 1 "$out") =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
            passed=$((passed + BASH_REMATCH[1])) failed=$((failed + BASH_REMATCH[2]))
        else
            broken=$((broken + 1))
            echo "FAIL client $version, codec $codec: ended without its count"
            head -c 2000 "$out.err"
        fi
    done
done
echo "== all: $passed passed, $((failed + broken)) failed"
[ "$passed" -gt 0 ] && [ $((failed + broken)) = 0 ]
