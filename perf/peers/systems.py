"""The brokers that are compared: how each is installed, started, loaded and stopped, and what its acknowledgement means.

A system has `install`, `broker` (a context manager that yields what `load` needs) and `load` (the command line of a run). Everything
listens on loopback only and is ended by whoever started it.
"""

import base64
import contextlib
import dataclasses
import hashlib
import json
import shutil
import socket
import struct
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
HELPERS = Path(__file__).resolve().parent
QUEUES = 8
START_SECONDS = 120
CLIENT_JVM = ["-Xms512m", "-Xmx512m", "-XX:+UseSerialGC"]


class Unavailable(Exception):
    """Why a system cannot be measured on this machine."""


@dataclass(frozen=True)
class Row:
    """A load: `in_flight` requests of `batch` messages unanswered at a time on each connection."""

    name: str
    title: str
    mode: str
    size: int
    batch: int
    connections: int
    in_flight: int
    # What there is to be read, again and again.
    backlog: int = 0


ROWS = [
    Row("single", "send 1 KiB, 32 requests in flight on each of 8 connections", "produce", 1024, 1, 8, 32),
    Row("lone", "send 1 KiB, one at a time on one connection", "produce", 1024, 1, 1, 1),
    Row("batch-100", "send 1 KiB in batches of 100, 2 in flight on each of 8 connections", "produce", 1024, 100, 8, 2),
    Row("batch-1000", "send 128 B in batches of 1,000, 4 in flight on each of 4 connections", "produce", 128, 1000, 4, 4),
    Row("tail", "read 1 KiB, 100 a pull, 8 connections, 40,000 messages that every side has in memory", "consume", 1024, 100, 8, 1, 40_000),
    Row("backlog", "read 1 KiB, 100 a pull, 8 connections, 200,000 messages: RingMQ from disk, others from the page cache", "consume", 1024, 100, 8, 1, 200_000),
]
# How there comes to be something to read.
FILL = Row("fill", "", "produce", 1024, 100, 8, 2)


@dataclass
class Broker:
    """A broker that runs."""

    pid: int
    servers: str
    commands: list


@dataclass
class Plan:
    """What all systems are told alike."""

    cache: Path
    broker_cores: str
    load_cores: str
    programs: Path | None
    # More arguments for RingMQ's broker.
    broker_arguments: tuple = ()

    def cores(self, text):
        ranges = (part.split("-") for part in text.split(","))
        return [core for first, *last in ranges for core in range(int(first), int((last or [first])[0]) + 1)]

    def pinned_broker(self):
        return ["taskset", "-c", self.broker_cores]

    def pinned_load(self):
        return ["taskset", "-c", self.load_cores]


def run(command, **options):
    result = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if result.returncode != 0:
        raise Unavailable(f"{' '.join(str(part) for part in command[:4])} … fails: {last_words(result.stdout)}")
    return result.stdout


def target_directory():
    metadata = subprocess.run(
        ["cargo", "metadata", "--format-version", "1", "--no-deps"], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE
    ).stdout
    return Path(json.loads(metadata)["target_directory"])


def built_programs():
    """The folder of ringmq-broker and the tools, built if need be."""
    run(["cargo", "build", "--release", "--quiet", "-p", "ringmq", "-p", "ringmq-tools"], cwd=REPOSITORY)
    return target_directory() / "release"


def benchmark(name, *package):
    """The program of a benchmark of ours, built if need be."""
    command = ["cargo", "bench", "--quiet", *package, "--bench", name, "--no-run", "--message-format=json"]
    lines = subprocess.run(command, cwd=REPOSITORY, check=True, text=True, stdout=subprocess.PIPE).stdout
    for message in map(json.loads, lines.splitlines()):
        if message.get("executable") and message["target"]["name"] == name:
            return message["executable"]
    raise SystemExit(f"cargo names no program {name}")


def last_words(text):
    lines = [line for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-4:]) or "no output"


def needs(*programs):
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise Unavailable(f"{' and '.join(missing)} not found")


def free_port(neighbours=(0,)):
    """A port that is free, as are those at these distances from it."""
    for _ in range(1000):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            for distance in neighbours:
                if distance != 0:
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port + distance))
            return port
    raise Unavailable("no free ports")


@contextlib.contextmanager
def process(command, folder, name):
    """Runs a server with its output in `folder`; ended on leaving, at once: what it stored is thrown away."""
    log = folder / f"{name}.out"
    with open(log, "wb") as out:
        server = subprocess.Popen([str(part) for part in command], cwd=folder, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        yield server, log
    finally:
        server.kill()
        server.wait()


def wait_for(condition, server, log, what):
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if server.poll() is not None or time.monotonic() > deadline:
            raise Unavailable(f"{what} does not start: {last_words(log.read_text(errors='replace'))}")
        time.sleep(0.05)


def answers(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def stamp_of(paths):
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Ringmq:
    """Ours; measured with both clients."""

    name = "RingMQ"
    is_jvm = False
    clients = ("ringmq-perf", "java")
    durability = {
        "sync": "`--flush sync` (default): acknowledged once on disk, many sends by one write (O_DIRECT, O_DSYNC)",
        "async": "`--flush async`: acknowledged when its write is on its way: the last milliseconds may be lost with the process, so this promises less than a page cache does",
    }

    def __init__(self, plan):
        self.plan = plan
        self.settings = " ".join(["one shard for each core of the broker, else defaults", *plan.broker_arguments])
        self.java = None

    def install_programs(self):
        needs("taskset")
        self.plan.programs = self.plan.programs or built_programs()

    def install(self):
        self.install_programs()
        try:
            self.java = RocketmqJars(self.plan)
        except Unavailable as reason:
            self.clients = ("ringmq-perf",)
            return f"no Java client: {reason}"

    def version(self):
        version = run([self.plan.programs / "ringmq-broker", "--version"]).strip()
        git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return f"{version}, source at commit {git.stdout.strip() or 'unknown'}"

    @contextlib.contextmanager
    def broker(self, folder, flush):
        listen, namesrv = (f"127.0.0.1:{free_port()}" for _ in range(2))
        shards = str(len(self.plan.cores(self.plan.broker_cores)))
        command = [*self.plan.pinned_broker(), self.plan.programs / "ringmq-broker", "--shards", shards, "--data", folder / "data"]
        command += ["--flush", flush, "--listen", listen, "--embedded-namesrv", namesrv, *self.plan.broker_arguments]
        with process(command, folder, "broker") as (server, log):
            wait_for(lambda: "is ready" in log.read_text(), server, log, "the broker")
            yield Broker(server.pid, namesrv, [command])

    def load(self, client, row, topic, broker, end):
        if client == "java":
            return self.java.load(row, topic, broker, end)
        return perf_load(self.plan, row, topic, broker, end)

    def prepare(self, topic, broker):
        create_topic(self.plan, topic, broker)

    def stored(self, topic, broker):
        return stored_messages(broker.servers, topic)


def perf_load(plan, row, topic, broker, end):
    command = [*plan.pinned_load(), plan.programs / "ringmq-perf", row.mode, "--json", "--namesrv", broker.servers, "--topic", topic]
    command += ["--connections", row.connections, "--threads", len(plan.cores(plan.load_cores)), "--broker-pid", broker.pid]
    if row.mode == "produce":
        command += ["--size", row.size, "--batch", row.batch, "--in-flight", row.in_flight]
    else:
        command += ["--pull-batch", row.batch, "--repeat"]
    warmup, command_end = end.get("warmup"), []
    if warmup is not None:
        command_end = ["--warmup", f"{round(warmup * 1000)}ms"]
    for name in "seconds", "count":
        if name in end:
            command_end += [f"--{name}", end[name]]
    return command + command_end


def create_topic(plan, topic, broker):
    """One message makes the topic on all brokers, with the queues that every client then uses."""
    one = Row("", "", "produce", 1024, 1, 1, 1)
    run([*perf_load(plan, one, topic, broker, {"count": 1, "warmup": 0}), "--queues", QUEUES], timeout=START_SECONDS)


def ask(address, code, ext):
    """One request of RocketMQ's protocol; its answer's header and body."""
    header = json.dumps({"code": code, "flag": 0, "language": "OTHER", "opaque": 1, "version": 479, "extFields": ext}).encode()
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), 10) as connection, connection.makefile("rwb") as stream:
        stream.write(struct.pack(">ii", 4 + len(header), len(header)) + header)
        stream.flush()
        start = stream.read(8)
        if len(start) < 8:
            raise OSError(f"{address} hangs up on request {code}")
        length, header_length = struct.unpack(">ii", start)
        header = json.loads(stream.read(header_length & 0xFFFFFF))
        body = stream.read(length - 4 - (header_length & 0xFFFFFF))
    if header["code"] != 0:
        raise OSError(f"request {code} is refused with {header['code']}: {header.get('remark')}")
    return header, body


def stored_messages(namesrv, topic):
    """How many messages the queues of a topic have, by their offsets."""
    _, body = ask(namesrv, 105, {"topic": topic, "acceptStandardJsonOnly": "true"})
    route = json.loads(body)
    addresses = {broker["brokerName"]: broker["brokerAddrs"]["0"] for broker in route["brokerDatas"]}
    total = 0
    for queues in route["queueDatas"]:
        for queue in range(queues["readQueueNums"]):
            place = {"topic": topic, "queueId": str(queue)}
            newest, oldest = (ask(addresses[queues["brokerName"]], code, place)[0] for code in (30, 31))
            total += int(newest["extFields"]["offset"]) - int(oldest["extFields"]["offset"])
    return total


def build_jars(plan, peer):
    """Fetches a peer's published artifacts with Maven and builds the load generator for it, unless that was done before."""
    needs("java", "mvn")
    project = HELPERS / "java"
    target = plan.cache / peer
    stamp = stamp_of([project / "pom.xml", *project.glob("src/**/*.java")])
    done = target / "complete"
    if not done.exists() or done.read_text() != stamp:
        run(["mvn", "-q", "-B", "-f", project / "pom.xml", "-P", f"peer-{peer}", f"-Dpeer.target={target}", "package"])
        done.write_text(stamp)
    return target


def jar_version(target, artifact):
    versions = [path.stem.removeprefix(f"{artifact}-") for path in (target / "lib").glob(f"{artifact}-*.jar")]
    return min(versions, key=len, default="unknown")


class RocketmqJars:
    """RocketMQ's published artifacts and their client."""

    def __init__(self, plan):
        self.plan = plan
        self.target = build_jars(plan, "rocketmq")

    def java(self, folder, *flags):
        # What runbroker.sh and runserver.sh of its distribution open, and a home of its own for its log files.
        opened = ["java.base/java.nio", "java.base/sun.nio.ch", "java.base/jdk.internal.misc"]
        command = ["java", *flags, "--add-exports=java.base/jdk.internal.ref=ALL-UNNAMED"]
        command += [f"--add-opens={package}=ALL-UNNAMED" for package in opened]
        command += [f"-Duser.home={folder}", f"-Drocketmq.home.dir={folder}"]
        return [*command, "-cp", f"{self.target}/perf.jar:{self.target}/lib/*"]

    def load(self, row, topic, broker, end):
        folder = self.plan.cache / "client-home"
        folder.mkdir(exist_ok=True)
        command = [*self.plan.pinned_load(), *self.java(folder, *CLIENT_JVM), "ringmq.perf.RocketMq"]
        return command + helper_load(row, topic, broker, end)


def helper_load(row, topic, broker, end):
    """The options that all helper programs share."""
    arguments = [row.mode, "--servers", broker.servers, "--topic", topic, "--size", row.size, "--batch", row.batch]
    arguments += ["--connections", row.connections, "--in-flight", row.in_flight, "--broker-pid", broker.pid]
    for name, value in end.items():
        arguments += [f"--{name}", value]
    return arguments


class Rocketmq:
    name = "RocketMQ"
    is_jvm = True
    clients = ("ringmq-perf", "java")
    durability = {
        "sync": "`flushDiskType=SYNC_FLUSH`: acknowledged after an fsync, one for all sends that wait",
        "async": "`flushDiskType=ASYNC_FLUSH` (default): acknowledged from the page cache, which outlives the process but not the machine",
    }
    settings = (
        "published defaults but for names, ports and folders; `maxTransferCountOnMessageInMemory=100` (default 32) so that a pull may bring 100, "
        "`diskMaxUsedSpaceRatio=95`. JVM: -Xms1g -Xmx1g and otherwise the flags of its runbroker.sh (G1)"
    )

    def __init__(self, plan):
        self.plan = plan

    def install(self):
        needs("taskset")
        if self.plan.programs is None:
            raise Unavailable("ringmq-perf is not built")
        self.jars = RocketmqJars(self.plan)

    def version(self):
        return f"{jar_version(self.jars.target, 'rocketmq-broker')} (Maven artifacts rocketmq-broker, rocketmq-namesrv, rocketmq-client)"

    @contextlib.contextmanager
    def broker(self, folder, flush):
        # It also takes the ports two below and one above.
        listen, namesrv = free_port((-2, 0, 1)), free_port()
        name_server = f"127.0.0.1:{namesrv}"
        settings = {
            "listenPort": namesrv, "bindAddress": "127.0.0.1", "rocketmqHome": folder, "kvConfigPath": folder / "kv.json",
        }
        (folder / "namesrv.conf").write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        settings = {
            "brokerClusterName": "DefaultCluster", "brokerName": "broker-a", "brokerId": 0, "brokerIP1": "127.0.0.1", "brokerIP2": "127.0.0.1",
            "bindAddress": "127.0.0.1", "listenPort": listen, "haListenPort": listen + 1, "namesrvAddr": name_server,
            "storePathRootDir": folder / "store", "storePathCommitLog": folder / "store" / "commitlog", "brokerRole": "ASYNC_MASTER",
            "flushDiskType": f"{flush.upper()}_FLUSH", "diskMaxUsedSpaceRatio": 95, "maxTransferCountOnMessageInMemory": 100,
        }
        (folder / "broker.conf").write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        flags = ["-server", "-Xms1g", "-Xmx1g", "-XX:+UseG1GC", "-XX:G1HeapRegionSize=16m", "-XX:G1ReservePercent=25"]
        flags += ["-XX:InitiatingHeapOccupancyPercent=30", "-XX:SoftRefLRUPolicyMSPerMB=0", "-XX:-OmitStackTraceInFastThrow"]
        flags += ["-XX:MaxDirectMemorySize=15g", "-XX:-UseLargePages"]
        first = [*self.plan.pinned_broker(), *self.jars.java(folder, "-Xms256m", "-Xmx256m"), "org.apache.rocketmq.namesrv.NamesrvStartup"]
        first += ["-c", folder / "namesrv.conf"]
        second = [*self.plan.pinned_broker(), *self.jars.java(folder, *flags), "org.apache.rocketmq.broker.BrokerStartup"]
        second += ["-c", folder / "broker.conf"]
        with process(first, folder, "namesrv") as (server, log):
            wait_for(lambda: answers(namesrv), server, log, "the name server")
            with process(second, folder, "broker") as (server, log):
                wait_for(lambda: answers(listen) and registered(name_server), server, log, "the broker")
                yield Broker(server.pid, name_server, [first, second])

    def load(self, client, row, topic, broker, end):
        if client == "java":
            return self.jars.load(row, topic, broker, end)
        return perf_load(self.plan, row, topic, broker, end)

    prepare = Ringmq.prepare
    stored = Ringmq.stored


def registered(name_server):
    with contextlib.suppress(OSError, ValueError):
        _, body = ask(name_server, 106, {})
        return b"broker-a" in body
    return False


class Kafka:
    name = "Kafka"
    is_jvm = True
    clients = ("kafka-clients",)
    durability = {
        "sync": "`log.flush.interval.messages=1`, acks=1: acknowledged after an fsync of the partition",
        "async": "default, acks=1: acknowledged from the page cache, which outlives the process but not the machine",
    }
    settings = (
        "published defaults, one process as broker and controller (KRaft). JVM: -Xms1g -Xmx1g and otherwise the flags of kafka-run-class.sh (G1). "
        "Client: a producer for each connection and partition with as many messages unanswered as RingMQ has, no idempotence, no retries, linger 0; "
        "how it packs them into requests is left to it (batch.size: its default of 16 KiB for single sends, a batch's bytes for batches)"
    )

    def __init__(self, plan):
        self.plan = plan

    def install(self):
        needs("taskset")
        self.target = build_jars(self.plan, "kafka")
        self.classpath = f"{self.target}/perf.jar:{self.target}/lib/*"

    def version(self):
        return f"{jar_version(self.target, 'kafka_2.13')} (Maven artifacts kafka_2.13, kafka-clients)"

    @contextlib.contextmanager
    def broker(self, folder, flush):
        listen, controller = free_port(), free_port()
        settings = {
            "process.roles": "broker,controller", "node.id": 1, "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{listen},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{listen}", "controller.listener.names": "CONTROLLER",
            "log.dirs": folder / "data", "offsets.topic.replication.factor": 1,
        }
        if flush == "sync":
            settings["log.flush.interval.messages"] = 1
        (folder / "server.properties").write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        name = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # A leading dash would be an option.
        name = name if not name.startswith("-") else f"A{name[1:]}"
        run(["java", "-cp", self.classpath, "kafka.tools.StorageTool", "format", "-t", name, "-c", folder / "server.properties"])
        command = [*self.plan.pinned_broker(), "java", "-server", "-Xms1g", "-Xmx1g", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"]
        command += ["-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent", "-Djava.awt.headless=true"]
        command += ["-cp", self.classpath, "kafka.Kafka", folder / "server.properties"]
        with process(command, folder, "broker") as (server, log):
            wait_for(lambda: answers(listen), server, log, "the broker")
            yield Broker(server.pid, f"127.0.0.1:{listen}", [command])

    def load(self, client, row, topic, broker, end):
        command = [*self.plan.pinned_load(), "java", *CLIENT_JVM, "-cp", self.classpath, "ringmq.perf.Kafka"]
        command += helper_load(row, topic, broker, end)
        if row.batch > 1:
            # Record and batch headers: 16 bytes are more than a record has besides its body.
            command += ["--request-bytes", row.batch * (row.size + 16) + 100]
        return command

    def prepare(self, topic, broker):
        pass

    stored = None


class Nats:
    UNANSWERED_MAX = 512
    name = "NATS"
    is_jvm = False
    clients = ("nats.go",)
    durability = {
        "sync": "`sync_interval: always`: acknowledged after an fsync of the stream's file",
        "async": "default (sync_interval 2m): acknowledged from the page cache, which outlives the process but not the machine",
    }
    settings = (
        "JetStream with file storage and defaults, eight streams (as many as the others have queues or partitions). Client: each connection "
        "publishes to a stream of its own with PublishAsync, as many messages unanswered as RingMQ has, but at most 512: a queue that "
        "it works off within a short run even where each message is flushed. PublishAsync knows no batches"
    )

    def __init__(self, plan):
        self.plan = plan

    def install(self):
        needs("taskset", "go")
        project = HELPERS / "nats"
        self.target = self.plan.cache / "nats"
        self.target.mkdir(exist_ok=True)
        stamp = stamp_of(path for path in project.iterdir() if path.is_file())
        done = self.target / "complete"
        if not done.exists() or done.read_text() != stamp:
            # go.mod decides the version of both.
            for package, program in (".", "nats-perf"), ("github.com/nats-io/nats-server/v2", "nats-server"):
                run(["go", "build", "-o", self.target / program, package], cwd=project)
            done.write_text(stamp)

    def version(self):
        client = run(["go", "list", "-m", "-f", "{{.Version}}", "github.com/nats-io/nats.go"], cwd=HELPERS / "nats").strip()
        return f"{run([self.target / 'nats-server', '--version']).strip()}, nats.go {client}"

    @contextlib.contextmanager
    def broker(self, folder, flush):
        port = free_port()
        always = "sync_interval: always" if flush == "sync" else ""
        text = f'listen: "127.0.0.1:{port}"\nserver_name: perf\njetstream {{ store_dir: "{folder / "data"}", max_file_store: 200GB\n{always} }}\n'
        (folder / "nats.conf").write_text(text)
        command = [*self.plan.pinned_broker(), self.target / "nats-server", "-c", folder / "nats.conf"]
        with process(command, folder, "broker") as (server, log):
            wait_for(lambda: answers(port) and "Server is ready" in log.read_text(), server, log, "the server")
            yield Broker(server.pid, f"127.0.0.1:{port}", [command])

    def load(self, client, row, topic, broker, end):
        if row.mode == "produce" and row.batch > 1:
            # The client has no batches: the same number of messages, one by one.
            row = dataclasses.replace(row, batch=1, in_flight=min(row.batch * row.in_flight, self.UNANSWERED_MAX))
        return [*self.plan.pinned_load(), self.target / "nats-perf", *helper_load(row, topic, broker, end)]

    def prepare(self, topic, broker):
        pass

    stored = None


SYSTEMS = {"ringmq": Ringmq, "rocketmq": Rocketmq, "kafka": Kafka, "nats": Nats}
