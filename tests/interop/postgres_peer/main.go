// A program that writes a table of PostgreSQL with the usual driver of Go, and knows nothing of who reads it.
//
// peer PORT TABLE WORKERS ROUNDS: each worker writes in one isolation level, each round in another way; prints how many
// transactions were committed, rolled back because it wanted that, and refused by the server.
package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"sync"

	"github.com/lib/pq"
)

const ways = 9

type counts struct {
	Committed  int `json:"committed"`
	RolledBack int `json:"rolled_back"`
	Refused    int `json:"refused"`
}

type writer struct {
	table  string
	number int
	db     *sql.DB
	counts
}

func main() {
	workers, rounds := number(os.Args[3]), number(os.Args[4])
	all := make([]*writer, workers)
	var running sync.WaitGroup
	for n := range all {
		db, err := sql.Open("postgres", "host=127.0.0.1 user=postgres dbname=postgres sslmode=disable port="+os.Args[1])
		check(err)
		db.SetMaxOpenConns(1)
		all[n] = &writer{table: os.Args[2], number: n, db: db}
		running.Add(1)
		go func(one *writer) {
			defer running.Done()
			one.write(rounds)
		}(all[n])
	}
	running.Wait()
	var sum counts
	for _, one := range all {
		sum.Committed += one.Committed
		sum.RolledBack += one.RolledBack
		sum.Refused += one.Refused
	}
	check(json.NewEncoder(os.Stdout).Encode(sum))
}

func (w *writer) write(rounds int) {
	levels := []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable}
	upsert, err := w.db.Prepare("INSERT INTO " + w.table + " AS t (region, id, v, note) VALUES ($1, $2, $3, $4)" +
		" ON CONFLICT (region, id) DO UPDATE SET v = t.v + excluded.v, note = excluded.note")
	check(err)
	for round := range rounds {
		way := (round + w.number) % ways
		if way == 0 { // a statement that is a transaction of its own
			_, err := upsert.Exec("shared", round%5, 1, nil)
			w.count(err)
			continue
		}
		tx, err := w.db.BeginTx(context.Background(), &sql.TxOptions{Isolation: levels[w.number%3]})
		check(err)
		keep, err := w.change(tx, tx.Stmt(upsert), way, round)
		if err != nil || !keep {
			check(tx.Rollback())
			if err == nil {
				w.RolledBack++
			} else {
				w.count(err)
			}
			continue
		}
		w.count(tx.Commit())
	}
	check(w.db.Close())
}

// change does what is to be done in one transaction; false if it is to be rolled back.
func (w *writer) change(tx *sql.Tx, upsert *sql.Stmt, way, round int) (bool, error) {
	own := fmt.Sprintf("go/%d%%", w.number) // a key with what is escaped in it
	run := func(query string, arguments ...any) error {
		_, err := tx.Exec(query, arguments...)
		return err
	}
	put := func(id int, v any) error {
		_, err := upsert.Exec(own, id, v, "é€😀 \\ \"")
		return err
	}
	switch way {
	case 1: // several rows with one prepared statement, one of them twice
		for _, id := range []int{1, 2, 3, 2} {
			if err := put(id, "1.50"); err != nil {
				return false, err
			}
		}
	case 2: // all given up
		if err := put(4, 1); err != nil {
			return false, err
		}
		return false, run("DELETE FROM "+w.table+" WHERE region = $1", own)
	case 3: // a part given up
		for _, query := range []string{"SAVEPOINT a", "DELETE FROM " + w.table + " WHERE id < 1000", "ROLLBACK TO a"} {
			if err := run(query); err != nil {
				return false, err
			}
		}
		return true, put(1, 7)
	case 4: // COPY
		copying, err := tx.Prepare("COPY " + w.table + " (region, id, v, note) FROM STDIN")
		if err != nil {
			return false, err
		}
		for n := range 5 {
			if _, err := copying.Exec(own, 1000*(round+1)+n, n, nil); err != nil {
				return false, err
			}
		}
		if _, err := copying.Exec(); err != nil {
			return false, err
		}
		return true, copying.Close()
	case 5: // many rows in one statement
		return true, run("INSERT INTO "+w.table+" AS t SELECT $1, n, n, 'many' FROM generate_series(1, 20) n"+
			" ON CONFLICT (region, id) DO UPDATE SET v = 0", own)
	case 6: // other keys
		return true, run("UPDATE "+w.table+" SET id = -id WHERE region = $1 AND id BETWEEN 1000 AND 99999 AND id % 2 = 0", own)
	case 7:
		return true, run("DELETE FROM "+w.table+" WHERE region = $1 AND id % 3 = 0", own)
	default: // an error in the middle
		if err := put(9, 1); err != nil {
			return false, err
		}
		return true, run("INSERT INTO "+w.table+" VALUES ($1, 9)", own)
	}
	return true, nil
}

func (w *writer) count(err error) {
	if err == nil {
		w.Committed++
		return
	}
	if _, refused := err.(*pq.Error); !refused {
		check(err)
	}
	w.Refused++
}

func number(text string) int {
	found, err := strconv.Atoi(text)
	check(err)
	return found
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
