package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"slices"
)

// Rows of the recall models. The sidecar takes the same bodies; itemBody is for the sidecar only.

type queryRow struct {
	QueryFeatures features `json:"query_features"`
}

type userRow struct {
	UserFeatures features `json:"user_features"`
	// Nil, for a user without a history, is sent as null.
	HistoryItemIDs []string `json:"history_item_ids"`
}

type itemBody struct {
	ItemFeatures features `json:"item_features"`
}

type sequenceRow struct {
	Sequence []string `json:"sequence"`
}

type textRow struct {
	Text string `json:"text"`
}

type recallRow struct {
	UserID string `json:"user_id"`
	TopK   *int   `json:"top_k,omitempty"`
}

// recalled holds the items recalled for a user, best first.
type recalled struct {
	ItemIDs []string  `json:"item_ids"`
	Scores  []float64 `json:"scores"`
}

// checkEmbeddings embeds one row, whose vector must be flat, and several rows.
func checkEmbeddings[Row any](c *Client, model string, want Case[Row, []float64], check checker) {
	single := func(data any) error {
		answer, err := c.predict(model, data, nil)
		if err != nil {
			return err
		}
		vector, err := lenientNumbers(answer, 1)
		if err != nil {
			return err
		}
		return sameVector(vector, want.Predictions[0])
	}
	several := func() error {
		vectors, err := embedRows(c, model, want.Rows)
		if err != nil {
			return err
		}
		return sameVectors(vectors, want.Predictions)
	}
	check(single(want.Rows[:1]), model+" one row")
	check(single(want.Rows[0]), model+" one row without a list")
	check(several(), fmt.Sprintf("%s %d rows", model, len(want.Rows)))
}

// embedRows returns the vectors of several rows.
func embedRows[Row any](c *Client, model string, rows []Row) ([][]float64, error) {
	answer, err := c.predict(model, rows, nil)
	if err != nil {
		return nil, err
	}
	var decoded struct {
		Predictions [][]float64 `json:"predictions"`
	}
	err = strictly(answer, &decoded)
	return decoded.Predictions, err
}

// checkRoute embeds each body with a route of the sidecar, and expects an error for a body without
// its only required field.
func checkRoute[Body any](
	c *Client, route, required string, want Case[Body, []float64], check checker,
) {
	embed := func() error {
		for i, body := range want.Rows {
			answer := map[string][]float64{}
			if err := c.ask("/"+route, body, &answer); err != nil {
				return fmt.Errorf("row %d: %w", i, err)
			}
			if err := sameVector(answer[route], want.Predictions[i]); err != nil {
				return fmt.Errorf("row %d: %w", i, err)
			}
		}
		return nil
	}
	check(embed(), fmt.Sprintf("/%s of %d rows", route, len(want.Rows)))
	err := c.ask("/"+route, struct{}{}, nil)
	detail := required + ": expected it in the body, got none"
	check(refusedAs(err, statusError{Status: 400, Detail: detail}), "/"+route+" of an empty body")
}

// checkRecall recalls items for each user, through the sidecar and directly.
func (c *Client) checkRecall(want Case[recallRow, recalled], check checker) {
	byRoute := func(row recallRow) (found recalled, err error) {
		err = c.ask("/recall", row, &found)
		return found, err
	}
	byModel := func(row recallRow) (recalled, error) {
		answer, err := c.predict("graph_recall", []recallRow{row}, nil)
		if err != nil {
			return recalled{}, err
		}
		var decoded struct {
			Predictions [1]recalled `json:"predictions"`
		}
		err = strictly(answer, &decoded)
		return decoded.Predictions[0], err
	}
	for i, row := range want.Rows {
		name := row.UserID + ", the default top_k"
		if row.TopK != nil {
			name = fmt.Sprintf("%s, top_k %d", row.UserID, *row.TopK)
		}
		found, err := byRoute(row)
		check(sameRecalled(found, want.Predictions[i], err), "/recall of "+name)
		found, err = byModel(row)
		check(sameRecalled(found, want.Predictions[i], err), "graph_recall of "+name)
	}
}

func sameRecalled(got, want recalled, err error) error {
	if err != nil {
		return err
	}
	if got.ItemIDs == nil || got.Scores == nil {
		return fmt.Errorf("expected lists, got null: %+v", got)
	}
	if !slices.Equal(got.ItemIDs, want.ItemIDs) {
		return fmt.Errorf("expected %v, got %v", want.ItemIDs, got.ItemIDs)
	}
	return sameVector(got.Scores, want.Scores)
}

// index holds item vectors by id, as exported by make index ARGS='--format json'.
type index map[string][]float64

// search returns the k items with the largest inner products, best first.
func (items index) search(vector []float64, k int) []string {
	scores := make(map[string]float64, len(items))
	ids := make([]string, 0, len(items))
	for id, item := range items {
		for i := range item {
			scores[id] += item[i] * vector[i]
		}
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b string) int { return cmp.Compare(scores[b], scores[a]) })
	return ids[:min(k, len(ids))]
}

// checkTwoSteps recalls items in two steps: embed with the model, then search the index.
func checkTwoSteps[Row any](
	c *Client, model, indexFile string, want Case[Row, []float64], check checker,
) {
	recall := func() error {
		content, err := os.ReadFile(indexFile)
		if err != nil {
			return err
		}
		items := index{}
		if err := json.Unmarshal(content, &items); err != nil {
			return err
		}
		vectors, err := embedRows(c, model, want.Rows)
		if err != nil {
			return err
		}
		for i, nearest := range want.Nearest {
			if found := items.search(vectors[i], len(nearest)); !slices.Equal(found, nearest) {
				return fmt.Errorf("row %d: expected %v, got %v", i, nearest, found)
			}
		}
		return nil
	}
	check(recall(), fmt.Sprintf("%s vectors, then the index, for %d users", model, len(want.Nearest)))
}
