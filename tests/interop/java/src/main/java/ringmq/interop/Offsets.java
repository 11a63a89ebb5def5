package ringmq.interop;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/**
 * Two halves with a restart of the broker between them, run with the same run id: what one group consumed before is not
 * given to it again after, and the rest is. All names and counts follow from the run id, so nothing is kept between.
 */
final class Offsets {
    private static final int PER_QUEUE = 20;
    private static final int QUEUES_PER_BROKER = 2;

    private Offsets() {
    }

    private static String name(World world, String suffix) {
        return "it-" + world.runId + "-offsets-" + suffix;
    }

    static void save(World world) throws Exception {
        String topic = name(world, "t");
        List<MessageQueue> queues = world.createTopic(topic, QUEUES_PER_BROKER);

        // The push group consumes the first half, all of it, and leaves.
        Set<String> first = new TreeSet<>(world.sendTo(queues, "T", "first-", PER_QUEUE / 2 * queues.size()));
        Inbox inbox = new Inbox();
        DefaultMQPushConsumer consumer = world.pushInto(inbox, name(world, "push"), topic, "*");
        world.report.check(world.check("first_half_arrives"), inbox.awaitKeys(first), inbox.differenceFrom(first));
        consumer.shutdown();
        Map<MessageQueue, Long> committed = Pulling.awaitCommitted(world, name(world, "push"), queues, PER_QUEUE / 2);
        world.report.equal(world.check("push_committed"), everywhere(queues, PER_QUEUE / 2), committed);

        world.sendTo(queues, "T", "second-", PER_QUEUE / 2 * queues.size());
        // The pull group commits a position in the middle of each queue.
        DefaultLitePullConsumer lite = world.lite(name(world, "lite"));
        lite.start();
        lite.assign(queues);
        // The client reads each queue's committed position when it begins to pull it, and takes what it read even if the
        // caller has committed meanwhile: so a message of every queue must have come before the commit.
        Inbox polled = new Inbox();
        Await.until(() -> {
            polled.add(lite.poll(500));
            return polled.offsets().size() == queues.size();
        });
        // Commits are one-way, and a broker drops those of a group it has not heard of: the group becomes known with the
        // first heartbeat after the client has learnt the topic's route.
        DefaultMQPullConsumer store = world.pull(name(world, "lite"));
        Await.until(() -> {
            lite.commitSync(new HashMap<>(everywhere(queues, 7)), true);
            return Pulling.committed(store, queues).equals(everywhere(queues, 7));
        });
        lite.shutdown();
        world.report.equal(world.check("lite_committed"), everywhere(queues, 7), Pulling.committed(store, queues));

        // A commit whose answer the client waits for must survive kill -9. It is the last thing sent, and a broker that
        // keeps commits in order has the one-way commits before it on disk by then too.
        DefaultMQPullConsumer waits = world.pull(name(world, "waits"));
        boolean answered = Await.until(() -> {
            for (MessageQueue queue : queues) {
                waits.getOffsetStore().updateConsumeOffsetToBroker(queue, 4, false);
            }
            return true;
        });
        world.report.check(world.check("waits_committed"), answered && Pulling.committed(waits, queues).equals(everywhere(queues, 4)),
            Pulling.committed(waits, queues).toString());
    }

    static void check(World world) throws Exception {
        String topic = name(world, "t");
        // The broker may just have been started: wait until it is back in the route.
        int queuesWanted = world.brokers().size() * QUEUES_PER_BROKER;
        boolean routed = Await.until(() -> world.queues(topic).size() == queuesWanted);
        world.report.check(world.check("routed_after_restart"), routed, "not " + queuesWanted + " queues in the route");
        List<MessageQueue> queues = world.queues(topic);

        Inbox stored = world.readAll(topic, PER_QUEUE * queues.size());
        Set<String> all = new TreeSet<>();
        Set<String> second = new TreeSet<>();
        for (int i = 0; i < PER_QUEUE / 2 * queues.size(); i++) {
            all.add("first-" + i);
            second.add("second-" + i);
        }
        all.addAll(second);
        world.report.equal(world.check("all_still_stored"), "", stored.differenceFrom(all));
        List<String> gaps = new ArrayList<>();
        stored.offsets().forEach((queue, offsets) -> {
            for (int i = 0; i < offsets.size(); i++) {
                if (offsets.get(i) != i) {
                    gaps.add(queue + " has offset " + offsets.get(i) + " in place " + i);
                }
            }
        });
        world.report.check(world.check("offsets_without_gaps"), gaps.isEmpty(), gaps.toString());
        boolean bodies = stored.all().stream().allMatch(message ->
            java.util.Arrays.equals(World.message(topic, "T", message.getKeys()).getBody(), message.getBody()));
        world.report.check(world.check("bodies_intact"), bodies, "a body differs from what was sent");

        world.report.equal(world.check("push_offsets_survive"), everywhere(queues, PER_QUEUE / 2),
            Pulling.awaitCommitted(world, name(world, "push"), queues, PER_QUEUE / 2));
        world.report.equal(world.check("lite_offsets_survive"), everywhere(queues, 7),
            Pulling.awaitCommitted(world, name(world, "lite"), queues, 7));

        world.report.equal(world.check("awaited_offsets_survive"), everywhere(queues, 4),
            Pulling.awaitCommitted(world, name(world, "waits"), queues, 4));

        Inbox lite = new Inbox();
        DefaultLitePullConsumer liteConsumer = world.lite(name(world, "lite"));
        liteConsumer.subscribe(topic, "*");
        liteConsumer.start();
        Set<String> liteRest = new TreeSet<>();
        for (MessageExt message : stored.all()) {
            if (message.getQueueOffset() >= 7) {
                liteRest.add(message.getKeys());
            }
        }
        Await.until(() -> {
            lite.add(liteConsumer.poll(500));
            return lite.counts().keySet().containsAll(liteRest);
        });
        world.report.equal(world.check("lite_gets_the_rest_once"), "", lite.differenceFrom(liteRest));

        Inbox push = new Inbox();
        DefaultMQPushConsumer consumer = world.pushInto(push, name(world, "push"), topic, "*");
        List<Long> next = new ArrayList<>();
        for (MessageQueue queue : queues) {
            SendResult result = world.producer().send(World.message(topic, "T", "third-" + queue.getBrokerName() + "-" + queue.getQueueId()), queue);
            next.add(result.getQueueOffset());
            second.add("third-" + queue.getBrokerName() + "-" + queue.getQueueId());
        }
        world.report.check(world.check("queues_go_on"), next.stream().allMatch(offset -> offset == PER_QUEUE), next.toString());
        world.report.check(world.check("push_gets_the_rest"), push.awaitKeys(second), push.differenceFrom(second));
        consumer.shutdown();
        world.report.equal(world.check("push_gets_nothing_twice"), "", push.differenceFrom(second));
    }

    private static Map<MessageQueue, Long> everywhere(List<MessageQueue> queues, long offset) {
        Map<MessageQueue, Long> map = new TreeMap<>();
        queues.forEach(queue -> map.put(queue, offset));
        return map;
    }
}
