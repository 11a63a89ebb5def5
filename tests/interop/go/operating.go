package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/apache/rocketmq-client-go/v2/consumer"
)

// lag tells how many messages a group has still to consume, and how many queues it has an offset in.
func (w *world) lag(group string) (lag, begun int) {
	var described struct {
		Lag    int
		Queues []struct {
			Topic     string
			Committed *int `json:"committed_offset"`
		}
	}
	must(json.Unmarshal(w.tool("group", "describe", group, "--json"), &described), "what the tool prints")
	for _, queue := range described.Queues {
		if queue.Committed != nil && queue.Topic != "%RETRY%"+group {
			begun++
		}
	}
	return described.Lag, begun
}

// An operator moves groups of this client: while it runs, and while it does not.
func groupOffsets(w *world) {
	topic, group, copied := w.name("t"), w.name("g"), w.name("copy")
	queues := w.createTopic(topic, 1)
	isAtEnd := func(group string) bool {
		lag, begun := w.lag(group)
		return lag == 0 && begun == len(queues)
	}
	keys := w.sendTo(queues, "T", "k", 20)
	in := &inbox{}
	running := w.pushInto(in, group, topic, "*")
	in.await(keys)
	w.check("no_lag", until(func() bool { return isAtEnd(group) }), "the group does not get to the end")
	w.tool("group", "reset-offset", group, "--topic", topic, "--to", "first")
	w.check("live_reset", until(func() bool { return len(in.all()) == 2*len(keys) && len(in.lacks(keys)) == 0 }), in.counts())
	until(func() bool { return isAtEnd(group) })
	must(running.Shutdown(), "a shutdown")

	keys = append(keys, w.sendTo(queues, "T", "later-", 10)...)
	lag, _ := w.lag(group)
	w.check("lag", lag == 10, lag)
	w.tool("group", "reset-offset", group, "--topic", topic, "--to", "5")
	in = &inbox{}
	running = w.pushInto(in, group, topic, "*")
	var wanted []string
	for i, k := range keys {
		if i >= 20 || i/len(queues) >= 5 {
			wanted = append(wanted, k)
		}
	}
	in.await(wanted)
	until(func() bool { return isAtEnd(group) })
	must(running.Shutdown(), "a shutdown")
	w.check("offline_reset", in.difference(wanted) == "", in.difference(wanted))

	piled := w.sendTo(queues, "T", "piled-", 10)
	keys = append(keys, piled...)
	w.tool("group", "clone", group, copied, "--topic", topic)
	w.tool("group", "skip", group, "--topic", topic)
	fence := w.sendFence(queues, "T", "end")
	keys = append(keys, fence...)
	in, inCopy := &inbox{}, &inbox{}
	w.pushInto(in, group, topic, "*")
	running = w.pushInto(inCopy, copied, topic, "*")
	in.await(fence)
	inCopy.await(append(piled, fence...))
	until(func() bool { return isAtEnd(copied) })
	must(running.Shutdown(), "a shutdown")
	w.check("skip", in.difference(fence) == "", in.difference(fence))
	w.check("clone", inCopy.difference(append(piled, fence...)) == "", inCopy.difference(append(piled, fence...)))

	// A deleted group is as if it had never been: it begins with the first message.
	w.tool("group", "delete", copied)
	isListed := bytes.Contains(w.tool("group", "list", "--json"), []byte(copied))
	in = &inbox{}
	w.pushInto(in, copied, topic, "*")
	in.await(keys)
	w.check("delete", !isListed && in.difference(keys) == "", in.difference(keys))
}

// Topics in order: one queue on one broker, or a number on each that the name server keeps.
func orderTopic(w *world) {
	for order, perBroker := range map[string]int{"global": 1, "queue": 3} {
		topic := w.name(order)
		w.tool("topic", "create", topic, "--queues", fmt.Sprint(perBroker), "--order", order)
		wanted := 1
		if order == "queue" {
			wanted = perBroker * len(w.places)
		}
		queues := w.awaitQueues(topic, wanted)
		in := &inbox{}
		w.pushInto(in, w.name("g-"+order), topic, "*", consumer.WithConsumerOrder(true))
		sender := w.producerWith()
		var keys, sent []string
		for i := range 60 {
			m := message(topic, "T", fmt.Sprintf("k%d", i))
			answer, err := sender.SendSync(context.Background(), m)
			must(err, "a send")
			keys, sent = append(keys, key(m)), append(sent, queueName(answer.MessageQueue))
		}
		in.await(keys)
		w.check(order+".all_arrive_once", in.difference(keys) == "", in.difference(keys))
		w.check(order+".in_order", in.disorder() == "", in.disorder())
		slices.Sort(sent)
		names := []string{}
		for _, queue := range queues {
			names = append(names, queueName(queue))
		}
		w.check(order+".queues", slices.Equal(slices.Compact(sent), names), sent)
	}
}
