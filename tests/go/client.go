package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
)

// Client calls TorchServe and the sidecar.
type Client struct {
	inference string
	sidecar   string
	http      http.Client
}

// statusError is a response other than 200. TorchServe sets code, type and message; the sidecar sets
// detail.
type statusError struct {
	Status  int    `json:"-"`
	Code    int    `json:"code"`
	Type    string `json:"type"`
	Message string `json:"message"`
	Detail  string `json:"detail"`
}

func (e *statusError) Error() string {
	return fmt.Sprintf("status %d: %s: %s%s", e.Status, e.Type, e.Message, e.Detail)
}

// predict posts {"data": data} to a model and returns the body of the response.
func (c *Client) predict(path string, data any, header http.Header) ([]byte, error) {
	return c.post(c.inference+"/predictions/"+path, map[string]any{"data": data}, header)
}

// ask posts a body to a route of the sidecar and decodes the response into target.
func (c *Client) ask(route string, body, target any) error {
	answer, err := c.post(c.sidecar+route, body, nil)
	if err != nil {
		return err
	}
	return strictly(answer, target)
}

func (c *Client) post(url string, content any, header http.Header) ([]byte, error) {
	body, err := json.Marshal(content)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequest("POST", url, bytes.NewReader(body))
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

// checkHealth sends the health check of the load balancer to TorchServe or the sidecar.
func (c *Client) checkHealth(base string) error {
	response, err := c.http.Get(base + "/ping")
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

// lenientNumbers reads a response as the features client does: an array, or the value of "predictions"
// or "prediction". Of a nested list it takes the first element; it repeats a single number n times.
func lenientNumbers(answer []byte, n int) ([]float64, error) {
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
		numbers := make([]float64, n)
		for i := range numbers {
			numbers[i] = number
		}
		return numbers, nil
	}
	list, ok := decoded.([]any)
	if !ok {
		return nil, fmt.Errorf("expected a list of numbers, got %s", answer)
	}
	var numbers []float64
	for _, item := range list {
		if nested, ok := item.([]any); ok && len(nested) > 0 {
			item = nested[0]
		}
		number, ok := item.(float64)
		if !ok {
			return nil, fmt.Errorf("expected a number, got %v", item)
		}
		numbers = append(numbers, number)
	}
	return numbers, nil
}

// strictly decodes JSON and rejects keys that target does not have.
func strictly(answer []byte, target any) error {
	decoder := json.NewDecoder(bytes.NewReader(answer))
	decoder.DisallowUnknownFields()
	return decoder.Decode(target)
}

// sameVectors compares vectors or scores with a tolerance of 1e-5.
func sameVectors(got, want [][]float64) error {
	if len(got) != len(want) {
		return fmt.Errorf("expected %d rows, got %d", len(want), len(got))
	}
	for i := range want {
		if err := sameVector(got[i], want[i]); err != nil {
			return fmt.Errorf("row %d: %w", i, err)
		}
	}
	return nil
}

func sameVector(got, want []float64) error {
	if len(got) != len(want) {
		return fmt.Errorf("expected %d numbers, got %d", len(want), len(got))
	}
	for i := range want {
		if err := same(got[i], want[i]); err != nil {
			return fmt.Errorf("number %d: %w", i, err)
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
