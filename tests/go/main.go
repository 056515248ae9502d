// Command client calls the models as the Go services do, and checks what they would get.
//
//	client -url http://127.0.0.1:8080 -cases cases.json
//
// It prints a line for each check and exits with 1 when one fails.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"time"
)

// Case is what one model is asked, and what it must answer.
type Case struct {
	Version     string               `json:"version"`
	Rows        []map[string]float64 `json:"rows"`
	Vectors     [][]float64          `json:"vectors"`
	Predictions []json.RawMessage    `json:"predictions"`
}

// Client calls the models of one TorchServe.
type Client struct {
	url  string
	http http.Client
}

// statusError is an answer other than 200.
type statusError struct {
	Status  int    `json:"-"`
	Code    int    `json:"code"`
	Type    string `json:"type"`
	Message string `json:"message"`
}

func (e *statusError) Error() string {
	return fmt.Sprintf("status %d: %s: %s", e.Status, e.Type, e.Message)
}

// predict posts {"data": data} and returns the body of the answer.
func (c *Client) predict(path string, data any, header http.Header) ([]byte, error) {
	body, err := json.Marshal(map[string]any{"data": data})
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequest("POST", c.url+"/predictions/"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if header != nil {
		request.Header = header.Clone()
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		failure := &statusError{Status: response.StatusCode}
		if err := json.Unmarshal(answer, failure); err != nil {
			return nil, fmt.Errorf("status %d: %w: %s", response.StatusCode, err, answer)
		}
		return nil, failure
	}
	return answer, nil
}

// lenientScores reads an answer as the features client does: an array, or "predictions", or
// "prediction"; a nested list is cut to its first element, a lone number is copied to all n rows.
func lenientScores(answer []byte, n int) ([]float64, error) {
	var decoded any
	if err := json.Unmarshal(answer, &decoded); err != nil {
		return nil, err
	}
	if object, ok := decoded.(map[string]any); ok {
		if decoded, ok = object["predictions"]; !ok {
			decoded = object["prediction"]
		}
	}
	if number, ok := decoded.(float64); ok {
		scores := make([]float64, n)
		for i := range scores {
			scores[i] = number
		}
		return scores, nil
	}
	list, ok := decoded.([]any)
	if !ok {
		return nil, fmt.Errorf("expected a list of scores, got %s", answer)
	}
	var scores []float64
	for _, item := range list {
		if nested, ok := item.([]any); ok && len(nested) > 0 {
			item = nested[0]
		}
		number, ok := item.(float64)
		if !ok {
			return nil, fmt.Errorf("expected a number, got %v", item)
		}
		scores = append(scores, number)
	}
	return scores, nil
}

// exactScores reads an answer as the ranking client does: exactly n numbers, or an error.
func exactScores(answer []byte, n int) ([]float64, error) {
	var decoded struct {
		Predictions []*float64 `json:"predictions"`
	}
	if err := strictly(answer, &decoded); err != nil {
		return nil, err
	}
	if len(decoded.Predictions) != n {
		return nil, fmt.Errorf("expected %d scores, got %d", n, len(decoded.Predictions))
	}
	scores := make([]float64, n)
	for i, score := range decoded.Predictions {
		if score == nil || math.IsNaN(*score) || math.IsInf(*score, 0) {
			return nil, fmt.Errorf("score %d is not finite", i)
		}
		scores[i] = *score
	}
	return scores, nil
}

// strictly decodes JSON that has no other keys than target.
func strictly(answer []byte, target any) error {
	decoder := json.NewDecoder(bytes.NewReader(answer))
	decoder.DisallowUnknownFields()
	return decoder.Decode(target)
}

// sameScores compares scores with the expected predictions at 1e-5.
func sameScores(got []float64, expected []json.RawMessage) error {
	if len(got) != len(expected) {
		return fmt.Errorf("expected %d scores, got %d", len(expected), len(got))
	}
	for i, raw := range expected {
		var want float64
		if err := json.Unmarshal(raw, &want); err != nil {
			return err
		}
		if err := same(got[i], want); err != nil {
			return fmt.Errorf("row %d: %w", i, err)
		}
		if got[i] < 0 || got[i] > 1 {
			return fmt.Errorf("row %d: expected a score in [0, 1], got %g", i, got[i])
		}
	}
	return nil
}

func same(got, want float64) error {
	if math.Abs(got-want) > 1e-5*math.Max(1, math.Abs(want)) {
		return fmt.Errorf("expected %g, got %g", want, got)
	}
	return nil
}

// checkHealth asks what the load balancer asks.
func (c *Client) checkHealth() error {
	response, err := c.http.Get(c.url + "/ping")
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var health struct {
		Status string `json:"status"`
	}
	if err := json.NewDecoder(response.Body).Decode(&health); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK || health.Status != "Healthy" {
		return fmt.Errorf("expected 200 Healthy, got %d %q", response.StatusCode, health.Status)
	}
	return nil
}

// checkLenient scores rows, objects or vectors, with the client that reads many shapes.
func (c *Client) checkLenient(path string, rows any, header http.Header, want Case) error {
	answer, err := c.predict(path, rows, header)
	if err != nil {
		return err
	}
	scores, err := lenientScores(answer, len(want.Predictions))
	if err != nil {
		return err
	}
	return sameScores(scores, want.Predictions)
}

// checkExact scores the first n rows with the client that demands exactly n numbers.
func (c *Client) checkExact(model string, n int, want Case) error {
	answer, err := c.predict(model, want.Rows[:n], nil)
	if err != nil {
		return err
	}
	scores, err := exactScores(answer, n)
	if err != nil {
		return err
	}
	return sameScores(scores, want.Predictions[:n])
}

// tasks is one row of mmoe's predictions.
type tasks struct {
	CTR       *float64 `json:"ctr"`
	WatchTime *float64 `json:"watch_time"`
	GMV       *float64 `json:"gmv"`
}

// checkTasks asks mmoe for its three numbers a row.
func (c *Client) checkTasks(rows any, want Case) error {
	answer, err := c.predict("mmoe", rows, nil)
	if err != nil {
		return err
	}
	var decoded struct {
		Predictions []tasks `json:"predictions"`
	}
	if err := strictly(answer, &decoded); err != nil {
		return err
	}
	if len(decoded.Predictions) != len(want.Predictions) {
		return fmt.Errorf("expected %d rows, got %d", len(want.Predictions), len(decoded.Predictions))
	}
	for i, got := range decoded.Predictions {
		var expected tasks
		if err := json.Unmarshal(want.Predictions[i], &expected); err != nil {
			return err
		}
		if got.CTR == nil || got.WatchTime == nil || got.GMV == nil {
			return fmt.Errorf("row %d: expected ctr, watch_time and gmv, got %s", i, answer)
		}
		err := errors.Join(
			same(*got.CTR, *expected.CTR),
			same(*got.WatchTime, *expected.WatchTime),
			same(*got.GMV, *expected.GMV),
		)
		if err != nil {
			return fmt.Errorf("row %d: %w", i, err)
		}
	}
	return nil
}

// checkRefused sends a bad row and expects an error that a person can read.
func (c *Client) checkRefused(model string) error {
	_, err := c.predict(model, []map[string]any{{"user_age": "abc"}}, nil)
	var failure *statusError
	if !errors.As(err, &failure) {
		return fmt.Errorf("expected an error with code, type and message, got %v", err)
	}
	want := statusError{400, 400, "InvalidRequest", `data[0].user_age: expected a number, got "abc"`}
	if *failure != want {
		return fmt.Errorf("expected %v, got %v", &want, failure)
	}
	return nil
}

// credentials are the ways in which the callers show who they are.
func credentials() map[string]http.Header {
	basic := http.Request{Header: http.Header{}}
	basic.SetBasicAuth("service", "secret")
	return map[string]http.Header{
		"bearer token": {"Authorization": {"Bearer secret"}},
		"X-API-Key":    {"X-Api-Key": {"secret"}},
		"basic auth":   basic.Header,
	}
}

func main() {
	url := flag.String("url", "http://127.0.0.1:8080", "base URL of TorchServe")
	path := flag.String("cases", "cases.json", "file with rows and predictions by model")
	flag.Parse()
	content, err := os.ReadFile(*path)
	cases := map[string]Case{}
	if err == nil {
		err = json.Unmarshal(content, &cases)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(2)
	}

	client := &Client{url: *url, http: http.Client{Timeout: 30 * time.Second}}
	failed := false
	check := func(err error, name string) {
		if err != nil {
			failed = true
			fmt.Printf("FAIL %s: %v\n", name, err)
			return
		}
		fmt.Printf("ok   %s\n", name)
	}

	check(client.checkHealth(), "health")
	for _, model := range []string{"xgb", "deepfm"} {
		want := cases[model]
		check(client.checkLenient(model, want.Rows, nil, want), model+" features")
		check(client.checkLenient(model, want.Vectors, nil, want), model+" instances")
		for _, n := range []int{1, 2, len(want.Rows)} {
			check(client.checkExact(model, n, want), fmt.Sprintf("%s exactly %d scores", model, n))
		}
		versioned := model + "/" + want.Version
		check(client.checkLenient(versioned, want.Rows, nil, want), model+" version in the path")
		ignored := model + "?version=no-such-version"
		check(client.checkLenient(ignored, want.Rows, nil, want), model+" ?version= is ignored")
		for kind, header := range credentials() {
			check(client.checkLenient(model, want.Rows, header, want), model+" with "+kind)
		}
		check(client.checkRefused(model), model+" bad feature")
	}
	check(client.checkTasks(cases["mmoe"].Rows, cases["mmoe"]), "mmoe features")
	check(client.checkTasks(cases["mmoe"].Vectors, cases["mmoe"]), "mmoe instances")
	check(client.checkRefused("mmoe"), "mmoe bad feature")
	if failed {
		os.Exit(1)
	}
}
