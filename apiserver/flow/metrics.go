package flow

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// tally counts the requests of one class without a look into a table of metrics.
type tally struct {
	schema, level string
	dispatched    atomic.Int64
	waiting       atomic.Int64
	refused       [4]atomic.Int64
}

var reasons = [...]Rejected{QueueFull, ConcurrencyLimit, TimeOut, Cancelled}

func (t *tally) rejected(why Rejected) *atomic.Int64 {
	for i, r := range reasons {
		if r == why {
			return &t.refused[i]
		}
	}
	return &t.refused[0]
}

// metrics has kube-apiserver's names. Most are read when somebody asks.
type metrics struct {
	c     *Controller
	wait  *prometheus.HistogramVec
	mu    sync.Mutex
	tally map[[2]string]*tally
}

func newMetrics(c *Controller) *metrics {
	return &metrics{c: c, tally: map[[2]string]*tally{}, wait: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "apiserver_flowcontrol_request_wait_duration_seconds",
		Help:    "Length of time a request spent waiting in its queue",
		Buckets: []float64{0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30},
	}, []string{"priority_level", "flow_schema", "execute"})}
}

// of returns the counters of a class, which outlive its configuration.
func (m *metrics) of(schema, level string) *tally {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := [2]string{schema, level}
	if m.tally[k] == nil {
		m.tally[k] = &tally{schema: schema, level: level}
	}
	return m.tally[k]
}

func (m *metrics) waited(c *Class, executed bool, took time.Duration) {
	execute := "false"
	if executed {
		execute = "true"
	}
	m.wait.WithLabelValues(c.Level, c.Schema, execute).Observe(took.Seconds())
}

var (
	byFlow  = []string{"priority_level", "flow_schema"}
	byLevel = []string{"priority_level"}
)

func desc(name, help string, labels []string) *prometheus.Desc {
	return prometheus.NewDesc("apiserver_flowcontrol_"+name, help, labels, nil)
}

// Describe implements prometheus.Collector: the metrics describe themselves.
func (c *Controller) Describe(ch chan<- *prometheus.Desc) { c.metrics.wait.Describe(ch) }

// Collect implements prometheus.Collector.
func (c *Controller) Collect(ch chan<- prometheus.Metric) {
	c.metrics.wait.Collect(ch)
	c.metrics.mu.Lock()
	dispatched := desc("dispatched_requests_total", "Number of requests executed by API Priority and Fairness subsystem", byFlow)
	rejected := desc("rejected_requests_total", "Number of requests rejected by API Priority and Fairness subsystem", append(byFlow[:2:2], "reason"))
	queued := desc("current_inqueue_requests", "Number of requests currently pending in queues of the API Priority and Fairness subsystem", byFlow)
	for _, t := range c.metrics.tally {
		ch <- prometheus.MustNewConstMetric(dispatched, prometheus.CounterValue, float64(t.dispatched.Load()), t.level, t.schema)
		ch <- prometheus.MustNewConstMetric(queued, prometheus.GaugeValue, float64(t.waiting.Load()), t.level, t.schema)
		for i := range reasons {
			if n := t.refused[i].Load(); n > 0 {
				ch <- prometheus.MustNewConstMetric(rejected, prometheus.CounterValue, float64(n), t.level, t.schema, string(reasons[i]))
			}
		}
	}
	c.metrics.mu.Unlock()
	nominal := desc("nominal_limit_seats", "Nominal number of execution seats configured for each priority level", byLevel)
	limit := desc("upper_limit_seats", "Configured upper bound on number of execution seats available to each priority level", byLevel)
	lower := desc("lower_limit_seats", "Configured lower bound on number of execution seats available to each priority level", byLevel)
	seats := desc("current_executing_seats", "Concurrency (number of seats) occupied by the currently executing requests in the API Priority and Fairness subsystem", byLevel)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.seats.levels {
		for d, v := range map[*prometheus.Desc]int{nominal: l.nominal, limit: l.most, lower: l.keeps, seats: l.inUse} {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), l.name)
		}
	}
}
