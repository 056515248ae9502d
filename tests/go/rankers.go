package main

import (
	"errors"
	"fmt"
	"math"
	"net/http"
)

// features is a row of most models.
type features map[string]float64

// tasks is the prediction of mmoe for one row.
type tasks struct {
	CTR       *float64 `json:"ctr"`
	WatchTime *float64 `json:"watch_time"`
	GMV       *float64 `json:"gmv"`
}

// checkRanker scores rows in every way that the callers use.
func (c *Client) checkRanker(model string, want Case[features, float64], check checker) {
	check(c.checkLenient(model, want.Rows, nil, want.Predictions), model+" features")
	check(c.checkLenient(model, want.Instances, nil, want.Predictions), model+" instances")
	for _, n := range []int{1, 2, len(want.Rows)} {
		err := c.checkExact(model, want.Rows[:n], want.Predictions[:n])
		check(err, fmt.Sprintf("%s exactly %d scores", model, n))
	}
	versioned := model + "/" + want.Version
	check(c.checkLenient(versioned, want.Rows, nil, want.Predictions), model+" version in the path")
	ignored := model + "?version=no-such-version"
	check(c.checkLenient(ignored, want.Rows, nil, want.Predictions), model+" ?version= is ignored")
	for kind, header := range credentials() {
		check(c.checkLenient(model, want.Rows, header, want.Predictions), model+" with "+kind)
	}
	check(c.checkRefused(model), model+" bad feature")
}

// checkLenient scores rows, as objects or arrays, with the client that accepts many response shapes.
func (c *Client) checkLenient(path string, rows any, header http.Header, want []float64) error {
	answer, err := c.predict(path, rows, header)
	if err != nil {
		return err
	}
	scores, err := lenientNumbers(answer, len(want))
	if err != nil {
		return err
	}
	return sameScores(scores, want)
}

// checkExact scores rows with the client that requires exactly one number per row.
func (c *Client) checkExact(model string, rows []features, want []float64) error {
	answer, err := c.predict(model, rows, nil)
	if err != nil {
		return err
	}
	var decoded struct {
		Predictions []*float64 `json:"predictions"`
	}
	if err := strictly(answer, &decoded); err != nil {
		return err
	}
	if len(decoded.Predictions) != len(rows) {
		return fmt.Errorf("expected %d scores, got %d", len(rows), len(decoded.Predictions))
	}
	scores := make([]float64, len(rows))
	for i, score := range decoded.Predictions {
		if score == nil || math.IsNaN(*score) || math.IsInf(*score, 0) {
			return fmt.Errorf("score %d is not finite", i)
		}
		scores[i] = *score
	}
	return sameScores(scores, want)
}

// sameScores compares probabilities.
func sameScores(got, want []float64) error {
	for i, score := range got {
		if score < 0 || score > 1 {
			return fmt.Errorf("number %d: expected a score in [0, 1], got %g", i, score)
		}
	}
	return sameVector(got, want)
}

// checkTasks checks the three predictions of mmoe for each row.
func (c *Client) checkTasks(rows any, want []tasks) error {
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
	if len(decoded.Predictions) != len(want) {
		return fmt.Errorf("expected %d rows, got %d", len(want), len(decoded.Predictions))
	}
	for i, got := range decoded.Predictions {
		if got.CTR == nil || got.WatchTime == nil || got.GMV == nil {
			return fmt.Errorf("row %d: expected ctr, watch_time and gmv, got %s", i, answer)
		}
		err := errors.Join(
			same(*got.CTR, *want[i].CTR),
			same(*got.WatchTime, *want[i].WatchTime),
			same(*got.GMV, *want[i].GMV),
		)
		if err != nil {
			return fmt.Errorf("row %d: %w", i, err)
		}
	}
	return nil
}

// checkRefused sends a bad row and expects a readable error.
func (c *Client) checkRefused(model string) error {
	_, err := c.predict(model, []map[string]any{{"user_age": "abc"}}, nil)
	return refusedAs(err, statusError{
		Status: 400, Code: 400, Type: "InvalidRequest",
		Message: `data[0].user_age: expected a number, got "abc"`,
	})
}

// refusedAs compares an error with the expected one.
func refusedAs(err error, want statusError) error {
	var failure *statusError
	if !errors.As(err, &failure) || *failure != want {
		return fmt.Errorf("expected %v, got %v", &want, err)
	}
	return nil
}

// credentials returns the headers with which callers authenticate, by kind.
func credentials() map[string]http.Header {
	basic := http.Request{Header: http.Header{}}
	basic.SetBasicAuth("service", "secret")
	return map[string]http.Header{
		"bearer token": {"Authorization": {"Bearer secret"}},
		"X-API-Key":    {"X-Api-Key": {"secret"}},
		"basic auth":   basic.Header,
	}
}
