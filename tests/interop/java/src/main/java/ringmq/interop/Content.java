package ringmq.interop;

import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** What is in a message comes out as it went in. */
final class Content {
    private static final int BODY_BYTES_MAX = 4 * 1024 * 1024;
    private static final int MESSAGE_ILLEGAL = 13;

    private Content() {
    }

    static void bodies(World world) throws Exception {
        String topic = world.name("t");
        MessageQueue queue = world.createTopic(topic, 1).get(0);
        DefaultMQProducer producer = world.producer();

        Map<String, byte[]> bodies = new LinkedHashMap<>();
        bodies.put("one_byte", new byte[] {0});
        bodies.put("utf8", "καλημέρα 世界 👋 ÄÖÜ\u0000\u0001\u0002".getBytes(StandardCharsets.UTF_8));
        byte[] every = new byte[256];
        for (int i = 0; i < every.length; i++) {
            every[i] = (byte) i;
        }
        bodies.put("every_byte_value", every);
        bodies.put("just_below_compression", "x".repeat(4095).getBytes(StandardCharsets.US_ASCII));
        bodies.put("compressible", "compress me, ".repeat(5_000).getBytes(StandardCharsets.US_ASCII));
        bodies.put("random_64_KiB", random(64 * 1024));
        // The client deflates whatever is over 4 KiB, so what does not compress grows on its way to the broker's limit.
        bodies.put("random_4_MiB_less_8_KiB", random(BODY_BYTES_MAX - 8 * 1024));
        bodies.put("after_the_large_ones", new byte[] {1, 2, 3});

        for (Map.Entry<String, byte[]> entry : bodies.entrySet()) {
            SendResult result = producer.send(new Message(topic, "T", entry.getKey(), entry.getValue()), queue);
            if (result.getSendStatus() != SendStatus.SEND_OK) {
                world.report.fail(world.check(entry.getKey() + ".sent"), result.toString());
            }
        }
        for (String compression : List.of("LZ4", "ZSTD", "ZLIB")) {
            if (setCompression(producer, compression)) {
                String key = "compressed_" + compression;
                bodies.put(key, (compression + " compresses this, ").repeat(3_000).getBytes(StandardCharsets.US_ASCII));
                producer.send(new Message(topic, "T", key, bodies.get(key)), queue);
            }
        }
        producer.setCompressMsgBodyOverHowmuch(Integer.MAX_VALUE);
        bodies.put("uncompressed_4_MiB", random(BODY_BYTES_MAX));
        producer.send(new Message(topic, "T", "uncompressed_4_MiB", bodies.get("uncompressed_4_MiB")), queue);

        Map<String, MessageExt> read = world.readAll(topic, bodies.size()).byKey();
        Inbox pushed = new Inbox();
        world.pushInto(pushed, world.name("g"), topic, "*");
        world.report.check(world.check("all_pushed"), pushed.awaitKeys(bodies.keySet()), pushed.differenceFrom(bodies.keySet()));
        for (Map.Entry<String, byte[]> entry : bodies.entrySet()) {
            MessageExt pulled = read.get(entry.getKey());
            MessageExt given = pushed.byKey().get(entry.getKey());
            world.report.equal(world.check(entry.getKey() + ".pulled"), entry.getValue(), pulled == null ? null : pulled.getBody());
            world.report.equal(world.check(entry.getKey() + ".pushed"), entry.getValue(), given == null ? null : given.getBody());
        }
        MessageExt compressed = read.get("compressible");
        world.report.check(world.check("stored_compressed"), compressed != null
            && compressed.getStoreSize() < compressed.getBody().length, String.valueOf(compressed));

        // The client itself refuses these two, before anything reaches a broker.
        world.report.equal(world.check("empty_refused_by_client"), MESSAGE_ILLEGAL,
            clientError(producer, new Message(topic, "T", "empty", new byte[0])));
        world.report.equal(world.check("too_large_refused_by_client"), MESSAGE_ILLEGAL,
            clientError(producer, new Message(topic, "T", "large", random(BODY_BYTES_MAX + 1))));
        // A client set to send more is refused by the broker, which goes on serving the connection.
        DefaultMQProducer daring = world.producer(null);
        daring.setMaxMessageSize(2 * BODY_BYTES_MAX);
        daring.setCompressMsgBodyOverHowmuch(Integer.MAX_VALUE);
        int code = 0;
        try {
            daring.send(new Message(topic, "T", "large", random(BODY_BYTES_MAX + 1)), queue);
        } catch (MQBrokerException e) {
            code = e.getResponseCode();
        }
        world.report.equal(world.check("too_large_refused_by_broker"), MESSAGE_ILLEGAL, code);
        world.report.equal(world.check("connection_survives_refusal"), SendStatus.SEND_OK,
            daring.send(World.message(topic, "T", "small"), queue).getSendStatus());
    }

    static void keysProperties(World world) throws Exception {
        String topic = world.name("t");
        MessageQueue queue = world.createTopic(topic, 1).get(0);
        Map<String, String> user = new LinkedHashMap<>();
        user.put("plain", "value");
        user.put("unicode", "Grüße, 世界 👋 \u00a0\u202e");
        user.put("schlüssel", "key that is not ASCII");
        user.put("json", "{\"a\":[1,\"\\\\\",null]}\t\r\n/\"quoted\"");
        user.put("spaces", "  kept at both ends  ");
        user.put("long", "v".repeat(12_000) + "é".repeat(6_000));

        Message message = new Message(topic, "Tag-ÄÖ", "order-1 order-2 schlüssel", 0x7fabcdef, "body".getBytes(StandardCharsets.UTF_8), true);
        user.forEach(message::putUserProperty);
        message.setBuyerId("buyer");
        long before = System.currentTimeMillis();
        SendResult result = world.producer().send(message, queue);
        Message bare = new Message(topic, "body".getBytes(StandardCharsets.UTF_8));
        bare.setFlag(-1);
        world.producer().send(bare, queue);

        List<MessageExt> read = world.readAll(topic, 2).all();
        Inbox pushed = new Inbox();
        world.pushInto(pushed, world.name("g"), topic, "*");
        pushed.await(inbox -> inbox.all().size() >= 2);
        List<MessageExt> given = new ArrayList<>(pushed.all());
        given.sort((a, b) -> Long.compare(a.getQueueOffset(), b.getQueueOffset()));
        world.report.equal(world.check("counts"), List.of(2, 2), List.of(read.size(), given.size()));

        for (Map.Entry<String, List<MessageExt>> way : Map.of("pulled", read, "pushed", given).entrySet()) {
            String prefix = way.getKey() + ".";
            MessageExt got = way.getValue().get(0);
            world.report.equal(world.check(prefix + "keys"), "order-1 order-2 schlüssel", got.getKeys());
            world.report.equal(world.check(prefix + "tags"), "Tag-ÄÖ", got.getTags());
            world.report.equal(world.check(prefix + "flag"), 0x7fabcdef, got.getFlag());
            world.report.equal(world.check(prefix + "buyer"), "buyer", got.getBuyerId());
            world.report.equal(world.check(prefix + "unique_key"), result.getMsgId(), got.getMsgId());
            user.forEach((name, value) ->
                world.report.equal(world.check(prefix + "property." + name), value, got.getUserProperty(name)));
            world.report.check(world.check(prefix + "born_timestamp"), Math.abs(got.getBornTimestamp() - before) < 60_000,
                "born at " + got.getBornTimestamp() + ", sent after " + before);
            world.report.check(world.check(prefix + "born_host"), ((InetSocketAddress) got.getBornHost()).getPort() > 0,
                String.valueOf(got.getBornHost()));
            world.report.equal(world.check(prefix + "reconsume_times"), 0, got.getReconsumeTimes());
            MessageExt second = way.getValue().get(1);
            world.report.equal(world.check(prefix + "none.keys_and_tags"), Arrays.asList(null, null),
                Arrays.asList(second.getKeys(), second.getTags()));
            world.report.equal(world.check(prefix + "none.flag"), -1, second.getFlag());
        }

        // Properties take at most 32767 bytes; more is refused with the code for an illegal message.
        Message heavy = World.message(topic, "T", "heavy");
        heavy.putUserProperty("p", "p".repeat(33_000));
        int code = 0;
        try {
            world.producer().send(heavy, queue);
        } catch (MQBrokerException e) {
            code = e.getResponseCode();
        }
        world.report.equal(world.check("too_many_refused_by_broker"), MESSAGE_ILLEGAL, code);
    }

    /** The longest names: 127 characters for a topic, 120 for a group. */
    static void longNames(World world) throws Exception {
        String topic = pad(world.name("t"), 127);
        String group = pad(world.name("g"), 120);
        List<MessageQueue> queues = world.createTopic(topic, 1);
        List<String> keys = world.sendTo(queues, "T", "k", 10);
        Inbox inbox = new Inbox();
        world.pushInto(inbox, group, topic, "T");
        world.report.check(world.check("all_arrive"), inbox.awaitKeys(keys), inbox.differenceFrom(keys));
        world.report.check(world.check("topic_intact"), inbox.all().stream().allMatch(m -> m.getTopic().equals(topic)),
            "a message names another topic");
        int code = clientError(world.producer(), World.message(pad(topic, 128), "T", "k"));
        world.report.check(world.check("longer_refused_by_client"), code != 0, "a topic of 128 characters was accepted");
    }

    private static int clientError(DefaultMQProducer producer, Message message) throws Exception {
        try {
            producer.send(message);
            return 0;
        } catch (MQClientException e) {
            return e.getResponseCode();
        }
    }

    private static String pad(String name, int length) {
        return name + "-%|_aZ09".repeat(length).substring(0, length - name.length());
    }

    /** Chooses the compression where the client lets one choose (5.x); false where it does not. */
    static boolean setCompression(DefaultMQProducer producer, String name) throws Exception {
        for (var method : DefaultMQProducer.class.getMethods()) {
            if (method.getName().equals("setCompressType")) {
                for (Object constant : method.getParameterTypes()[0].getEnumConstants()) {
                    if (constant.toString().equals(name)) {
                        method.invoke(producer, constant);
                        return true;
                    }
                }
            }
        }
        return false;
    }

    private static byte[] random(int length) {
        byte[] bytes = new byte[length];
        new Random(length).nextBytes(bytes);
        return bytes;
    }
}
