package main

import (
	"context"
	"fmt"

	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
)

const perBroker = 20

func halfName(w *world, suffix string) string { return "go-" + w.runID + "-offsets-" + suffix }

// Two halves with a restart of the broker between them: what the group consumed before does not come again after it, and
// the rest does. All names follow from the run id. The client commits one-way, so that after kill -9 RingMQ may be short of the
// last second's commits, unless something that waits for the disk came after them: run.sh lets the Java client's half follow.
func offsetsSave(w *world) {
	topic, group := halfName(w, "t"), halfName(w, "g")
	queues := w.createTopic(topic, 2)
	first := w.sendTo(queues, "T", "first-", perBroker*len(w.places))
	in := &inbox{}
	running := w.pushInto(in, group, topic, "*")
	w.check("first_half_arrives", in.await(first), in.lacks(first))
	w.stop(running, group, topic, queues)
	w.check("each_once", in.difference(first) == "", in.difference(first))
	w.sendTo(queues, "T", "second-", perBroker*len(w.places))
}

func offsetsCheck(w *world) {
	topic, group := halfName(w, "t"), halfName(w, "g")
	var queues []*primitive.MessageQueue
	tool := w.admin()
	w.check("routed_after_restart", until(func() bool {
		queues = w.queues(tool, topic)
		return len(queues) == 2*len(w.places)
	}), fmt.Sprint(queues))
	var second []string
	for i := range perBroker * len(w.places) {
		second = append(second, fmt.Sprintf("second-%d", i))
	}
	in := &inbox{}
	w.pushInto(in, group, topic, "*", consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset))
	in.await(second)
	third := w.sendTo(queues, "T", "third-", len(queues))
	w.check("queues_go_on", in.await(third), in.lacks(third))
	all := append(second, third...)
	w.check("the_rest_arrives_once", in.difference(all) == "", in.difference(all))
}

// end gives the offset behind the last message of a queue.
func (w *world) end(queue *primitive.MessageQueue) int64 {
	_, ends := w.bounds([]*primitive.MessageQueue{queue})
	return ends[0]
}

// bounds gives the offsets of the first messages of queues, and those behind the last ones.
func (w *world) bounds(queues []*primitive.MessageQueue) (begins, ends []int64) {
	if w.reader == nil {
		w.reader = w.puller(w.name("reader-of-ends"), queues[0].Topic)
	}
	for _, queue := range queues {
		q := *queue
		// The client asks for them only as part of a pull: one from the first message.
		result, err := w.reader.PullFrom(context.Background(), &q, 0, 1)
		must(err, "a pull")
		begins, ends = append(begins, result.MinOffset), append(ends, result.MaxOffset)
	}
	return begins, ends
}
