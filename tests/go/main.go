// Command client calls the models as the Go services do and checks the responses.
//
//	client -url http://127.0.0.1:8080 -sidecar http://127.0.0.1:8090 -cases cases.json -index vectors
//
// It prints a line for each check and exits with status 1 if any fails.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"time"
)

// Case holds the request rows of one model and the predictions that it must return.
type Case[Row, Prediction any] struct {
	Version     string       `json:"version"`
	Rows        []Row        `json:"rows"`
	Instances   [][]float64  `json:"instances"` // the rows as arrays
	Predictions []Prediction `json:"predictions"`
	// Nearest holds, for each prediction, the ids of the nearest items in the index.
	Nearest [][]string `json:"nearest"`
}

// Cases holds a case for each model.
type Cases struct {
	XGB         Case[features, float64]      `json:"xgb"`
	DeepFM      Case[features, float64]      `json:"deepfm"`
	MMoE        Case[features, tasks]        `json:"mmoe"`
	TwoTower    Case[features, []float64]    `json:"two_tower"`
	UserTower   Case[features, []float64]    `json:"user_tower"`
	ItemTower   Case[features, []float64]    `json:"item_tower"`
	YouTubeDNN  Case[userRow, []float64]     `json:"youtube_dnn"`
	DSSM        Case[queryRow, []float64]    `json:"dssm"`
	Item2Vec    Case[sequenceRow, []float64] `json:"item2vec"`
	Word2Vec    Case[textRow, []float64]     `json:"word2vec"`
	GraphRecall Case[recallRow, recalled]    `json:"graph_recall"`
}

// checker reports one check.
type checker func(err error, name string)

// checkAll calls every model in every way that the services use.
func (c *Client) checkAll(cases Cases, indexFolder string, check checker) {
	check(c.checkHealth(c.inference), "health of TorchServe")
	check(c.checkHealth(c.sidecar), "health of the sidecar")

	c.checkRanker("xgb", cases.XGB, check)
	c.checkRanker("deepfm", cases.DeepFM, check)
	check(c.checkTasks(cases.MMoE.Rows, cases.MMoE.Predictions), "mmoe features")
	check(c.checkTasks(cases.MMoE.Instances, cases.MMoE.Predictions), "mmoe instances")
	check(c.checkRefused("mmoe"), "mmoe bad feature")

	checkEmbeddings(c, "two_tower", cases.TwoTower, check)
	checkEmbeddings(c, "user_tower", cases.UserTower, check)
	checkEmbeddings(c, "item_tower", cases.ItemTower, check)
	checkEmbeddings(c, "youtube_dnn", cases.YouTubeDNN, check)
	checkEmbeddings(c, "dssm", cases.DSSM, check)
	checkEmbeddings(c, "item2vec", cases.Item2Vec, check)
	checkEmbeddings(c, "word2vec", cases.Word2Vec, check)
	c.checkRecall(cases.GraphRecall, check)

	var items []itemBody
	for _, row := range cases.ItemTower.Rows {
		items = append(items, itemBody{row})
	}
	checkRoute(c, "query_embedding", "query_features", cases.DSSM, check)
	checkRoute(c, "user_embedding", "user_features", cases.YouTubeDNN, check)
	checkRoute(c, "item_embedding", "item_features", Case[itemBody, []float64]{
		Rows: items, Predictions: cases.ItemTower.Predictions,
	}, check)

	checkTwoSteps(c, "user_tower", indexFolder+"/item_embeddings.json", cases.UserTower, check)
	checkTwoSteps(c, "youtube_dnn", indexFolder+"/youtube_dnn_items.json", cases.YouTubeDNN, check)
}

func main() {
	inference := flag.String("url", "http://127.0.0.1:8080", "base URL of TorchServe")
	sidecar := flag.String("sidecar", "http://127.0.0.1:8090", "base URL of the sidecar")
	path := flag.String("cases", "cases.json", "file with rows and predictions by model")
	indexFolder := flag.String("index", "data/vectors", "folder of the exported item vectors")
	hash := flag.Bool("hash", false, "only print the ids that stand for the arguments, as JSON")
	flag.Parse()
	if *hash {
		ids := map[string]float64{}
		for _, text := range flag.Args() {
			ids[text] = hashedID(text)
		}
		if err := json.NewEncoder(os.Stdout).Encode(ids); err != nil {
			os.Exit(2)
		}
		return
	}
	var cases Cases
	content, err := os.ReadFile(*path)
	if err == nil {
		err = json.Unmarshal(content, &cases)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(2)
	}

	failed := false
	client := &Client{*inference, *sidecar, http.Client{Timeout: 30 * time.Second}}
	client.checkAll(cases, *indexFolder, func(err error, name string) {
		if err != nil {
			failed = true
			fmt.Printf("FAIL %s: %v\n", name, err)
			return
		}
		fmt.Printf("ok   %s\n", name)
	})
	if failed {
		os.Exit(1)
	}
}
