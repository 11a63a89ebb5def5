package ringmq.perf;

import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Objects;
import java.util.Random;
import java.util.TreeMap;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicLongArray;
import java.util.function.LongSupplier;

/**
 * Requests as fast as they are answered, at most so many in flight on each connection; what is answered between warm-up and end counts. Prints
 * the fields of the summary of {@code ringmq-perf --json} that are compared, and {@code acknowledged}: messages of the whole run, warm-up included.
 *
 * <p>A request that fails is an error with a kind, and never a message.
 */
final class Load {
    /** What asks on one connection. It ends every request once, now or from another thread. */
    interface Connection {
        void request(Done done) throws Exception;
    }

    final boolean isProduce;
    final String servers;
    final String topic;
    final int batch;
    final int connections;
    final int inFlight;
    final byte[] body;
    private final Map<String, String> options = new HashMap<>();
    private final double warmupSeconds;
    private final double seconds;
    private final String brokerPid;
    /** Messages that may still be asked for. */
    private final AtomicLong budget;

    private final AtomicLong acknowledged = new AtomicLong();
    private final AtomicLong measured = new AtomicLong();
    private final Latencies latencies = new Latencies();
    private final Map<String, Long> errors = new TreeMap<>();
    private final Map<String, String> firstErrors = new TreeMap<>();
    private volatile boolean isMeasuring;
    private volatile boolean isOver;

    /** {@code produce|consume --name value…}; names are those of ringmq-perf. */
    Load(String[] arguments) {
        isProduce = arguments[0].equals("produce");
        for (int at = 1; at + 1 < arguments.length; at += 2) {
            options.put(arguments[at].substring(2), arguments[at + 1]);
        }
        servers = option("servers", null);
        topic = option("topic", null);
        batch = Integer.parseInt(option("batch", "1"));
        connections = Integer.parseInt(option("connections", "1"));
        inFlight = Integer.parseInt(option("in-flight", "1"));
        body = new byte[Integer.parseInt(option("size", "1024"))];
        new Random(1).nextBytes(body);
        long count = Long.parseLong(option("count", "0"));
        budget = new AtomicLong(count > 0 ? count : Long.MAX_VALUE / 2);
        warmupSeconds = count > 0 ? 0 : Double.parseDouble(option("warmup", "2"));
        seconds = count > 0 ? 0 : Double.parseDouble(option("seconds", "10"));
        brokerPid = option("broker-pid", "self");
    }

    String option(String name, String otherwise) {
        String value = options.getOrDefault(name, otherwise);
        if (value == null) {
            throw new IllegalArgumentException("--" + name + " is missing");
        }
        return value;
    }

    /** A request that waits for its answer. */
    final class Done {
        private final Semaphore window;
        private final long begin = System.nanoTime();

        private Done(Semaphore window) {
            this.window = window;
        }

        /** What was answered, in messages; an answer without any has no latency. */
        void succeeded(int messages) {
            acknowledged.addAndGet(messages);
            if (isMeasuring && messages > 0) {
                measured.addAndGet(messages);
                latencies.add(System.nanoTime() - begin);
            }
            window.release();
        }

        void failed(String kind, String words) {
            problem(kind, words, 1);
            window.release();
        }

        void failed(Throwable problem) {
            failed(problem.getClass().getSimpleName(), String.valueOf(problem.getMessage()));
        }
    }

    private void problem(String kind, String words, long times) {
        synchronized (errors) {
            errors.merge(kind, times, Long::sum);
            firstErrors.putIfAbsent(kind, words.lines().findFirst().orElse(""));
        }
    }

    /**
     * Runs it and prints the summary.
     *
     * @param messagesEach of one request, {@code window} requests are unanswered at a time on a connection
     * @param stored asked after the load: how many messages the broker has more than before, or -1
     */
    void run(List<? extends Connection> each, int messagesEach, int window, LongSupplier stored) throws Exception {
        List<Semaphore> windows = new ArrayList<>();
        List<Thread> threads = new ArrayList<>();
        for (Connection connection : each) {
            Semaphore permits = new Semaphore(window);
            Thread thread = new Thread(() -> ask(connection, permits, messagesEach));
            thread.setDaemon(true);
            windows.add(permits);
            threads.add(thread);
        }
        threads.forEach(Thread::start);
        sleep(warmupSeconds);
        Usage broker = Usage.of(brokerPid);
        Usage generator = Usage.of("self");
        long begin = System.nanoTime();
        isMeasuring = true;
        if (seconds > 0) {
            sleep(seconds);
        } else {
            for (Thread thread : threads) {
                thread.join();
            }
        }
        isMeasuring = false;
        double elapsed = (System.nanoTime() - begin) / 1e9;
        Usage brokerEnd = Usage.of(brokerPid);
        Usage generatorEnd = Usage.of("self");
        isOver = true;
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(20);
        int unanswered = 0;
        for (Semaphore permits : windows) {
            while (permits.availablePermits() < window && System.nanoTime() < deadline) {
                sleep(0.005);
            }
            unanswered += window - permits.availablePermits();
        }
        if (unanswered > 0) {
            problem("unanswered", "20 s after the end", unanswered);
        }
        long storedCount = stored.getAsLong();
        System.out.println(summary(elapsed, broker.until(brokerEnd), generator.until(generatorEnd), storedCount));
        System.out.flush();
        // Threads of client libraries need not end first.
        Runtime.getRuntime().halt(0);
    }

    private void ask(Connection connection, Semaphore permits, int messagesEach) {
        while (!isOver && budget.getAndAdd(-messagesEach) > 0) {
            permits.acquireUninterruptibly();
            Done done = new Done(permits);
            try {
                connection.request(done);
            } catch (Exception problem) {
                done.failed(problem);
            }
        }
    }

    private static void sleep(double seconds) throws InterruptedException {
        TimeUnit.NANOSECONDS.sleep((long) (seconds * 1e9));
    }

    private String summary(double elapsed, Usage broker, Usage generator, long storedCount) {
        long messages = measured.get();
        List<String> kinds = new ArrayList<>();
        List<String> words = new ArrayList<>();
        synchronized (errors) {
            errors.forEach((kind, times) -> kinds.add(quoted(kind) + ":" + times));
            firstErrors.forEach((kind, text) -> words.add(quoted(kind) + ":" + quoted(text)));
        }
        return String.format(
                Locale.ROOT,
                "{\"seconds\":%f,\"messages\":%d,\"messages_per_second\":%f,\"acknowledged\":%d,\"stored\":%s,\"errors\":{%s},\"first_errors\":{%s},"
                        + "\"latency_us\":%s,\"brokers\":[{\"user_us\":%d,\"system_us\":%d,\"peak_rss_bytes\":%d,\"threads\":[{\"name\":\"C2 Compiler\",\"cpu_us\":%d}]}],"
                        + "\"generator\":{\"user_us\":%d,\"system_us\":%d}}",
                elapsed, messages, messages / elapsed, acknowledged.get(), storedCount < 0 ? "null" : storedCount, String.join(",", kinds),
                String.join(",", words), latencies.summary(), broker.userUs, broker.systemUs, broker.peakBytes, broker.jitUs, generator.userUs, generator.systemUs);
    }

    private static String quoted(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            out.append(c == '"' || c == '\\' ? "\\" + c : c < ' ' ? " " : String.valueOf(c));
        }
        return out.append('"').toString();
    }

    /** CPU of a process with all its threads, that of the JIT compiler's threads among it, and the peak of its memory. */
    private record Usage(long userUs, long systemUs, long jitUs, long peakBytes) {
        static Usage of(String pid) throws IOException {
            long jit = 0;
            for (File thread : Objects.requireNonNull(new File("/proc/" + pid + "/task").listFiles())) {
                try {
                    String stat = Files.readString(thread.toPath().resolve("stat"));
                    jit += stat.contains("(C1 Compiler") || stat.contains("(C2 Compiler") ? cpuUs(stat, 11) + cpuUs(stat, 12) : 0;
                } catch (IOException ended) {
                    // Threads end; the sums of the process have them.
                }
            }
            String stat = Files.readString(Path.of("/proc", pid, "stat"));
            long peak = 0;
            for (String line : Files.readAllLines(Path.of("/proc", pid, "status"))) {
                if (line.startsWith("VmHWM:")) {
                    peak = Long.parseLong(line.replaceAll("[^0-9]", "")) * 1024;
                }
            }
            return new Usage(cpuUs(stat, 11), cpuUs(stat, 12), jit, peak);
        }

        /** A time among the fields behind the name, which may have any character. Ticks are 10 ms wherever this runs. */
        private static long cpuUs(String stat, int field) {
            return Long.parseLong(stat.substring(stat.lastIndexOf(')') + 2).split(" ")[field]) * 10_000;
        }

        Usage until(Usage end) {
            return new Usage(end.userUs - userUs, end.systemUs - systemUs, Math.max(0, end.jitUs - jitUs), end.peakBytes);
        }
    }

    /** Counts by latency, exact to a hundredth. */
    private static final class Latencies {
        private final AtomicLongArray counts = new AtomicLongArray(64 << 7);

        void add(long ns) {
            int shift = Math.max(0, 56 - Long.numberOfLeadingZeros(ns));
            counts.incrementAndGet((shift << 7) + (int) (ns >>> shift));
        }

        String summary() {
            long total = 0;
            for (int at = 0; at < counts.length(); at++) {
                total += counts.get(at);
            }
            if (total == 0) {
                return "null";
            }
            return String.format(
                    Locale.ROOT, "{\"p50\":%.1f,\"p99\":%.1f,\"p99.9\":%.1f,\"max\":%.1f}", at(0.5, total), at(0.99, total), at(0.999, total), at(1, total));
        }

        private double at(double quantile, long total) {
            long below = (long) Math.ceil(total * quantile);
            for (int at = 0; at < counts.length(); at++) {
                below -= counts.get(at);
                if (below <= 0) {
                    int shift = Math.max(0, (at >> 7) - 1);
                    return ((long) (at - (shift << 7)) << shift) / 1e3;
                }
            }
            return Double.NaN;
        }
    }
}
