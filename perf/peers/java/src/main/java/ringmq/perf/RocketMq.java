package ringmq.perf;

import java.util.ArrayList;
import java.util.Collection;
import java.util.Collections;
import java.util.List;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.PullStatus;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageQueue;

/** The published RocketMQ client: a producer or consumer with a connection of its own for each of {@code --connections}. */
public final class RocketMq {
    public static void main(String[] arguments) throws Exception {
        Load load = new Load(arguments);
        List<Load.Connection> connections = new ArrayList<>();
        for (int number = 0; number < load.connections; number++) {
            connections.add(load.isProduce ? producer(load, number) : consumer(load, number));
        }
        load.run(connections, load.isProduce ? load.batch : 1, load.isProduce ? load.inFlight : 1, () -> -1);
    }

    private static Load.Connection producer(Load load, int number) throws Exception {
        DefaultMQProducer producer = new DefaultMQProducer("perf-producer");
        producer.setNamesrvAddr(load.servers);
        // Clients of one instance share connections.
        producer.setInstanceName("perf-" + number);
        producer.setRetryTimesWhenSendFailed(0);
        producer.setRetryTimesWhenSendAsyncFailed(0);
        producer.start();
        List<MessageQueue> queues = queues(producer.fetchPublishMessageQueues(load.topic));
        return new Load.Connection() {
            private int next = number;

            @Override
            public void request(Load.Done done) throws Exception {
                MessageQueue queue = queues.get(next++ % queues.size());
                if (load.inFlight == 1 && load.batch == 1) {
                    try {
                        answered(done, producer.send(new Message(load.topic, load.body), queue), 1);
                    } catch (MQBrokerException problem) {
                        failed(done, problem);
                    }
                } else if (load.batch == 1) {
                    producer.send(new Message(load.topic, load.body), queue, callback(done, 1));
                } else {
                    List<Message> messages = new ArrayList<>(load.batch);
                    for (int at = 0; at < load.batch; at++) {
                        messages.add(new Message(load.topic, load.body));
                    }
                    producer.send(messages, queue, callback(done, load.batch));
                }
            }
        };
    }

    private static SendCallback callback(Load.Done done, int messages) {
        return new SendCallback() {
            @Override
            public void onSuccess(SendResult result) {
                answered(done, result, messages);
            }

            @Override
            public void onException(Throwable problem) {
                failed(done, problem);
            }
        };
    }

    private static void failed(Load.Done done, Throwable problem) {
        if (problem instanceof MQBrokerException refusal) {
            done.failed("answer " + refusal.getResponseCode(), refusal.getErrorMessage());
        } else {
            done.failed(problem);
        }
    }

    private static void answered(Load.Done done, SendResult result, int messages) {
        // Stored, but not flushed in time: not what was asked for.
        if (result.getSendStatus() == SendStatus.SEND_OK) {
            done.succeeded(messages);
        } else {
            done.failed(result.getSendStatus().toString(), "");
        }
    }

    /** Reads its share of the queues in turn, again from the beginning where one ends. */
    @SuppressWarnings("deprecation")
    private static Load.Connection consumer(Load load, int number) throws Exception {
        DefaultMQPullConsumer consumer = new DefaultMQPullConsumer("perf-consumer");
        consumer.setNamesrvAddr(load.servers);
        consumer.setInstanceName("perf-" + number);
        consumer.start();
        List<MessageQueue> all = queues(consumer.fetchSubscribeMessageQueues(load.topic));
        List<MessageQueue> own = new ArrayList<>();
        for (int at = number; at < all.size(); at += load.connections) {
            own.add(all.get(at));
        }
        long[] offsets = new long[own.size()];
        return new Load.Connection() {
            private int next;

            @Override
            public void request(Load.Done done) throws Exception {
                int at = next++ % offsets.length;
                PullResult result = consumer.pull(own.get(at), "*", offsets[at], load.batch);
                offsets[at] = result.getNextBeginOffset() >= result.getMaxOffset() ? result.getMinOffset() : result.getNextBeginOffset();
                done.succeeded(result.getPullStatus() == PullStatus.FOUND ? result.getMsgFoundList().size() : 0);
            }
        };
    }

    private static List<MessageQueue> queues(Collection<MessageQueue> queues) {
        List<MessageQueue> sorted = new ArrayList<>(queues);
        Collections.sort(sorted);
        return sorted;
    }
}
