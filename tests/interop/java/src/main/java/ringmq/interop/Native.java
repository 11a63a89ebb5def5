package ringmq.interop;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.TreeSet;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** This client and the native one read what the other compressed. */
final class Native {
    /** The client clears the bit that says whether there is a compression when it has undone it. */
    private static final int TYPE_BITS = 0x700;

    private Native() {
    }

    static void compression(World world) throws Exception {
        List<String> types = new ArrayList<>();
        DefaultMQProducer producer = world.producer();
        for (String type : List.of("LZ4", "ZSTD", "ZLIB")) {
            if (Content.setCompression(producer, type)) {
                types.add(type);
            }
        }
        boolean canChoose = !types.isEmpty();
        if (!canChoose) {
            types.add("ZLIB");
        }

        String fromNative = world.name("native");
        world.createTopic(fromNative, 1);
        List<String> arguments = new ArrayList<>(List.of("send", "plain"));
        types.forEach(type -> arguments.add(type.toLowerCase()));
        List<String> sent = runNative(world, fromNative, arguments);
        world.report.equal(world.check("native_sent"), 3 * (types.size() + 1), sent.size());
        Inbox read = world.readAll(fromNative, sent.size());
        Inbox pushed = new Inbox();
        world.pushInto(pushed, world.name("g"), fromNative, "*");
        world.report.check(world.check("native_all_pushed"), pushed.awaitKeys(sent), pushed.differenceFrom(sent));
        world.report.equal(world.check("native_all_pulled"), "", read.differenceFrom(sent));
        for (String key : sent) {
            MessageExt pulled = read.byKey().get(key);
            MessageExt given = pushed.byKey().get(key);
            world.report.equal(world.check(key + ".pulled"), bodyOf(key), pulled == null ? null : pulled.getBody());
            world.report.equal(world.check(key + ".pushed"), bodyOf(key), given == null ? null : given.getBody());
            int type = pulled == null ? -1 : pulled.getSysFlag() & TYPE_BITS;
            world.report.equal(world.check(key + ".compressed"), typeOf(key), type);
        }

        String fromHere = world.name("java");
        MessageQueue queue = world.createTopic(fromHere, 1).get(0);
        TreeSet<String> expected = new TreeSet<>(List.of("java_plain none"));
        producer.send(new Message(fromHere, null, "java_plain", bodyOf("java_plain")), queue);
        for (String type : types) {
            String key = "java_" + type;
            if (canChoose) {
                Content.setCompression(producer, type);
            }
            producer.send(new Message(fromHere, null, key, bodyOf(key)), queue);
            expected.add(key + " " + type.charAt(0) + type.substring(1).toLowerCase());
        }
        List<String> received = runNative(world, fromHere, List.of("receive", String.valueOf(expected.size())));
        world.report.equal(world.check("native_reads_all"), expected, new TreeSet<>(received));
    }

    /** The native side has the same function. */
    private static byte[] bodyOf(String key) {
        String repeated = key + " is compressed, ";
        return (key.contains("plain") ? repeated : repeated.repeat(3_000)).getBytes(StandardCharsets.UTF_8);
    }

    private static int typeOf(String key) {
        return key.contains("lz4") ? 0x100 : key.contains("zstd") ? 0x200 : key.contains("zlib") ? 0x300 : 0;
    }

    /** Runs the native program; what it prints, line by line. */
    private static List<String> runNative(World world, String topic, List<String> what) throws IOException, InterruptedException {
        String program = System.getProperty("interop.native");
        if (program == null) {
            throw new IllegalStateException("no program of the native client was given (--native)");
        }
        List<String> command = new ArrayList<>(List.of(program, world.namesrv, topic));
        command.addAll(what);
        Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
        String printed = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
        if (!process.waitFor(60, TimeUnit.SECONDS) || process.exitValue() != 0) {
            throw new IOException(command + ": " + printed);
        }
        return printed.isBlank() ? List.of() : Arrays.asList(printed.strip().split("\n"));
    }
}
