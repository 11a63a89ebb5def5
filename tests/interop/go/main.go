// Scenarios of the published Go client against a running broker: NAMESRV_ADDR SCENARIO[,SCENARIO…]|all [RUN_ID], or --list.
// One line per check; the last line counts; the exit code is 0 only when nothing failed.
package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/apache/rocketmq-client-go/v2/rlog"
)

// A scenario that takes longer is ended as failed.
const watchdog = 120 * time.Second

// Long enough for a loaded machine and for the client's own timers (it learns a new topic's route, or that a retry topic
// is there, within 30 s and the next 20), shorter than the watchdog.
const patience = 75 * time.Second

// Scenarios that run at once; most of them wait for a timer of the client.
const atOnce = 6

type scenario struct {
	name string
	run  func(*world)
	// Runs only when named: it goes with a restart of the broker, or is what a scenario kills.
	isApart bool
	// The environment variable that it needs; without it the scenario is left out.
	needs string
	// Why it cannot pass on this broker yet; it is then named, not run. Empty: it must pass.
	pending string
}

// The one table of what is covered.
var scenarios = []scenario{
	{name: "producer_sync", run: producerSync},
	{name: "producer_async", run: producerAsync},
	{name: "producer_oneway", run: producerOneway},
	{name: "producer_batch", run: producerBatch},
	{name: "producer_ordered", run: producerOrdered},
	{name: "bodies", run: bodies},
	{name: "push_concurrent", run: pushConcurrent},
	{name: "push_tags", run: pushTags},
	{name: "push_sql", run: pushSQL},
	{name: "push_orderly", run: pushOrderly},
	{name: "push_broadcast", run: pushBroadcast},
	{name: "pull", run: pull},
	{name: "poll", run: poll},
	{name: "retry", run: retry},
	{name: "orderly_suspend", run: orderlySuspend},
	{name: "dlq", run: dlq},
	{name: "delay", run: delay},
	{name: "consume_from", run: consumeFrom},
	{name: "consume_from_aged", run: consumeFromAged, needs: "INTEROP_TOOL"},
	{name: "group_offsets", run: groupOffsets, needs: "INTEROP_TOOL"},
	{name: "order_topic", run: orderTopic, needs: "INTEROP_TOOL"},
	{name: "rebalance", run: rebalance},
	{name: "rebalance_crash", run: rebalanceCrash},
	{name: "orderly_crash", run: orderlyCrash},
	{name: "orderly_restart", run: orderlyRestart, isApart: true},
	{name: "offsets_save", run: offsetsSave, isApart: true},
	{name: "offsets_check", run: offsetsCheck, isApart: true},
	{name: "concurrent_victim", run: concurrentVictim, isApart: true},
	{name: "orderly_victim", run: orderlyVictim, isApart: true},
}

func main() {
	arguments := os.Args[1:]
	if len(arguments) == 1 && arguments[0] == "--list" {
		for _, s := range scenarios {
			fmt.Println(s.name)
		}
		return
	}
	if len(arguments) < 2 || len(arguments) > 3 {
		fmt.Fprintln(os.Stderr, "usage: NAMESRV_ADDR SCENARIO[,SCENARIO…]|all [RUN_ID]   or   --list")
		os.Exit(2)
	}
	var chosen []scenario
	isNamed := arguments[1] != "all"
	for _, s := range scenarios {
		if !isNamed && !s.isApart && (s.needs == "" || os.Getenv(s.needs) != "") {
			chosen = append(chosen, s)
		}
	}
	if isNamed {
		for _, name := range strings.Split(arguments[1], ",") {
			at := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })
			if at < 0 {
				fmt.Fprintf(os.Stderr, "no scenario %s; --list names them\n", name)
				os.Exit(2)
			}
			chosen = append(chosen, scenarios[at])
		}
	}
	runID := strconv.FormatInt(time.Now().UnixMilli(), 36)
	if len(arguments) == 3 {
		runID = arguments[2]
	}
	// What the client finds worth a warning is often its own doing; the broker's part shows in the checks.
	rlog.SetLogLevel("fatal")

	report := &report{}
	places, err := probe(arguments[0], runID)
	if err != nil {
		report.fail("brokers", err.Error())
		os.Exit(report.summary())
	}
	report.note(fmt.Sprintf("run %s, brokers %v", runID, places))
	slots := make(chan struct{}, atOnce)
	var running sync.WaitGroup
	for _, s := range chosen {
		// By name a pending scenario does run: so one sees whether it still has to wait.
		if s.pending != "" && !isNamed {
			report.pending(s.name, s.pending)
			continue
		}
		running.Add(1)
		slots <- struct{}{}
		go func() {
			defer func() {
				<-slots
				running.Done()
			}()
			runOne(s, &world{namesrv: arguments[0], runID: runID, scenario: s.name, places: places, report: report})
		}()
	}
	running.Wait()
	os.Exit(report.summary())
}

func runOne(s scenario, w *world) {
	begun := time.Now()
	over := time.AfterFunc(watchdog, func() {
		w.report.fail(s.name, fmt.Sprintf("hangs for %v", watchdog))
		w.report.summary()
		os.Exit(1)
	})
	defer over.Stop()
	func() {
		defer func() {
			if problem := recover(); problem != nil {
				w.report.fail(s.name, fmt.Sprint(problem))
			}
		}()
		s.run(w)
	}()
	w.close()
	w.report.note(fmt.Sprintf("%s took %d ms", s.name, time.Since(begun).Milliseconds()))
}

// report prints a line per check and counts.
type report struct {
	mutex                      sync.Mutex
	passed, failed, waitingFor int
}

func (r *report) line(count *int, text string) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if count != nil {
		*count++
	}
	fmt.Println(strings.ReplaceAll(text, "\n", " "))
}

func (r *report) fail(name, why string)    { r.line(&r.failed, "FAIL "+name+": "+why) }
func (r *report) pending(name, why string) { r.line(&r.waitingFor, "PENDING "+name+": waits for "+why) }
func (r *report) note(text string)         { r.line(nil, "# "+text) }

func (r *report) check(name string, holds bool, why any) {
	if holds {
		r.line(&r.passed, "PASS "+name)
		return
	}
	text := fmt.Sprint(why)
	if len(text) > 400 {
		text = text[:400] + "…"
	}
	r.fail(name, text)
}

// summary prints the count and gives the exit code.
func (r *report) summary() int {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.waitingFor > 0 {
		fmt.Printf("# %d pending\n", r.waitingFor)
	}
	fmt.Printf("%d passed, %d failed\n", r.passed, r.failed)
	if r.failed > 0 || r.passed == 0 {
		return 1
	}
	return 0
}
