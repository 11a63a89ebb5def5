package ringmq.perf;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutionException;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * The published Kafka client. Every producer has {@code --in-flight} × {@code --batch} messages unanswered at a time, for a partition of its own, and leaves
 * it to the client how it packs them into requests of at most {@code --request-bytes}. Latency is that of a message.
 */
public final class Kafka {
    private static final int PARTITIONS = 8;

    public static void main(String[] arguments) throws Exception {
        Load load = new Load(arguments);
        create(load);
        Map<TopicPartition, Long> before = ends(load);
        List<Load.Connection> connections = new ArrayList<>();
        for (int number = 0; number < load.connections; number++) {
            connections.add(load.isProduce ? producer(load, number) : consumer(load, number, before));
        }
        int window = load.isProduce ? load.inFlight * load.batch : 1;
        load.run(connections, 1, window, () -> load.isProduce ? sum(ends(load)) - sum(before) : -1);
    }

    private static void create(Load load) throws Exception {
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", load.servers))) {
            admin.createTopics(List.of(new NewTopic(load.topic, PARTITIONS, (short) 1))).all().get();
        } catch (ExecutionException problem) {
            if (!(problem.getCause() instanceof TopicExistsException)) {
                throw problem;
            }
        }
    }

    private static Map<TopicPartition, Long> ends(Load load) {
        List<TopicPartition> partitions = new ArrayList<>();
        for (int number = 0; number < PARTITIONS; number++) {
            partitions.add(new TopicPartition(load.topic, number));
        }
        try (KafkaConsumer<byte[], byte[]> consumer = newConsumer(load)) {
            return consumer.endOffsets(partitions);
        }
    }

    private static long sum(Map<TopicPartition, Long> offsets) {
        return offsets.values().stream().mapToLong(Long::longValue).sum();
    }

    private static Load.Connection producer(Load load, int number) {
        KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(
                Map.of(
                        "bootstrap.servers", load.servers,
                        "acks", "1",
                        "enable.idempotence", "false",
                        "retries", "0",
                        "linger.ms", load.option("linger-ms", "0"),
                        "batch.size", load.option("request-bytes", "16384"),
                        "max.in.flight.requests.per.connection", String.valueOf(load.inFlight)),
                new ByteArraySerializer(),
                new ByteArraySerializer());
        return done -> producer.send(new ProducerRecord<>(load.topic, number % PARTITIONS, null, load.body), (metadata, problem) -> {
            if (problem == null) {
                done.succeeded(1);
            } else {
                done.failed(problem);
            }
        });
    }

    /** Reads a partition, again from its beginning where it ends. */
    private static Load.Connection consumer(Load load, int number, Map<TopicPartition, Long> ends) {
        KafkaConsumer<byte[], byte[]> consumer = newConsumer(load);
        TopicPartition partition = new TopicPartition(load.topic, number % PARTITIONS);
        consumer.assign(List.of(partition));
        consumer.seekToBeginning(List.of(partition));
        return done -> {
            int messages = consumer.poll(Duration.ofSeconds(1)).count();
            if (consumer.position(partition) >= ends.get(partition)) {
                consumer.seekToBeginning(List.of(partition));
            }
            done.succeeded(messages);
        };
    }

    private static KafkaConsumer<byte[], byte[]> newConsumer(Load load) {
        return new KafkaConsumer<>(
                Map.of(
                        "bootstrap.servers", load.servers,
                        "max.poll.records", String.valueOf(load.batch),
                        "max.partition.fetch.bytes", load.option("request-bytes", "1048576")),
                new ByteArrayDeserializer(),
                new ByteArrayDeserializer());
    }
}
