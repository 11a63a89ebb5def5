package ringmq.interop;

import java.lang.reflect.Method;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** DefaultMQPushConsumer with clientRebalance=false: the broker says which queues, and whether they are pulled or popped. */
final class Popping {
    private Popping() {
    }

    static void pop(World world) throws Exception {
        Method clientRebalance = method(DefaultMQPushConsumer.class, "setClientRebalance");
        if (clientRebalance == null) {
            world.report.note(world.scenario + ": this client always divides the queues itself");
            return;
        }
        if (System.getProperty("rocketmq.serialize.type", "JSON").equals("ROCKETMQ")) {
            world.report.note(world.scenario + ": the codes of POP do not fit the 16 bits that this codec has for them");
            return;
        }
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopic(topic, 2);
        Set<String> keys = new TreeSet<>(world.sendTo(queues, "T", "k", 60));

        // Without a mode the queues are pulled.
        Inbox pulled = new Inbox();
        DefaultMQPushConsumer puller = world.push(world.name("pull"));
        clientRebalance.invoke(puller, false);
        puller.subscribe(topic, "*");
        puller.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            pulled.add(batch);
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        puller.start();
        pulled.awaitKeys(keys);
        world.report.equal(world.check("assigned_to_pull"), "", pulled.differenceFrom(keys));
        puller.shutdown();

        String group = world.name("pop");
        setPopMode(world, topic, group);
        // Every tenth message fails when it comes first; the client then asks for it again after 10 s.
        Set<String> failing = new HashSet<>();
        keys.stream().filter(key -> key.endsWith("0")).forEach(failing::add);
        Inbox inbox = new Inbox();
        Map<String, List<Integer>> tries = new ConcurrentHashMap<>();
        Set<String> withoutReceipt = ConcurrentHashMap.newKeySet();
        DefaultMQPushConsumer popper = world.push(group);
        clientRebalance.invoke(popper, false);
        popper.setConsumeMessageBatchMaxSize(1);
        popper.subscribe(topic, "*");
        popper.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            MessageExt message = batch.get(0);
            if (message.getProperty("POP_CK") == null) {
                withoutReceipt.add(message.getKeys());
            }
            List<Integer> before = tries.computeIfAbsent(message.getKeys(), key -> new ArrayList<>());
            synchronized (before) {
                before.add(message.getReconsumeTimes());
                if (before.size() == 1 && failing.contains(message.getKeys())) {
                    return ConsumeConcurrentlyStatus.RECONSUME_LATER;
                }
            }
            inbox.add(batch);
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        popper.start();
        // Onto pops that wait.
        keys.addAll(world.sendTo(queues, "T", "later", 20));
        inbox.awaitKeys(keys);
        popper.shutdown();
        world.report.equal(world.check("each_succeeds_once"), "", inbox.differenceFrom(keys));
        world.report.check(world.check("all_were_popped"), withoutReceipt.isEmpty(), withoutReceipt.toString());
        Map<String, List<Integer>> unexpected = new TreeMap<>(tries);
        unexpected.entrySet().removeIf(of -> of.getValue().equals(failing.contains(of.getKey()) ? List.of(0, 1) : List.of(0)));
        world.report.equal(world.check("failed_ones_come_again_once"), "{}", unexpected.toString());
        Set<String> topics = new TreeSet<>();
        inbox.all().forEach(message -> topics.add(message.getTopic()));
        world.report.equal(world.check("topic_of_retries_is_the_original"), Set.of(topic).toString(), topics.toString());
    }

    /** What {@code mqadmin setConsumeMode} does: tells every broker of the topic. These classes are not in 4.9. */
    private static void setPopMode(World world, String topic, String group) throws Exception {
        Object producer = world.producer().getDefaultMQProducerImpl();
        Object factory = method(producer.getClass(), "getMqClientFactory").invoke(producer);
        Object api = method(factory.getClass(), "getMQClientAPIImpl").invoke(factory);
        Class<?> modes = Class.forName("org.apache.rocketmq.common.message.MessageRequestMode");
        Object pop = Arrays.stream(modes.getEnumConstants()).filter(mode -> mode.toString().equals("POP")).findFirst().orElseThrow();
        for (String broker : world.brokers()) {
            Object address = method(factory.getClass(), "findBrokerAddressInPublish").invoke(factory, broker);
            method(api.getClass(), "setMessageRequestMode").invoke(api, address, topic, group, pop, 0, 10_000L);
        }
    }

    private static Method method(Class<?> of, String name) {
        return Arrays.stream(of.getMethods()).filter(method -> method.getName().equals(name)).findFirst().orElse(null);
    }
}
