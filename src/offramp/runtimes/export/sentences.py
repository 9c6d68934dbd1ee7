"""Texts of many kinds and lengths, for checking an export where no data is given."""

from __future__ import annotations

__all__ = ["SENTENCES"]

SENTENCES: tuple[str, ...] = (
    "Good.",
    "no",
    "Not bad at all, really.",
    "I would not recommend this to anyone.",
    "The film is a quiet marvel, patient and exact, and it stays with you for days.",
    "A dull, overlong story about people nobody could care for.",
    "Where can I change the address on my account?",
    "My card was swallowed by the machine and nobody answers the phone!!!",
    "How do I top up by bank transfer, and how long does it take?",
    "Two men are playing chess in a park.",
    "A woman in a red coat crosses the street while it rains.",
    "The council voted seven to two against the new bridge on Tuesday.",
    "Shares of the airline fell 12.4 % after it cut its forecast for the third time this year.",
    "Add 250 g of flour, a pinch of salt and three eggs; stir until no lumps remain.",
    "Water boils at a lower temperature on a mountain because the air presses less on it.",
    "CC(=O)Oc1ccccc1C(=O)O>>CC(=O)O.Oc1ccccc1C(=O)O",
    "def area(r): return 3.14159 * r ** 2",
    "ERROR 2024-03-01 12:00:07 worker-3 could not reach the database, retrying in 5 s",
    "https://example.org/a/b?c=d&e=f",
    "12 345,67",
    "?!?",
    "The patient reports a mild headache since yesterday and no fever.",
    "Dear Sir or Madam, I am writing to ask for a copy of the contract that I signed in May.",
    "lol that was sooo good, can't wait 4 the next one",
    "It is neither as good as its friends say nor as bad as its enemies would have it.",
    "The trains run every ten minutes on weekdays and every half hour at night.",
    "He said he would come; he did not; he never does.",
    "Der Zug nach Hamburg fährt heute von Gleis sieben.",
    "Le café était froid, mais le service était charmant.",
    "El equipo ganó por primera vez en once años.",
    "今天天气很好。",
    "Большое спасибо за помощь.",
    "The acting is splendid, the writing is not, and the music tries to hide it.",
    "Everything worked the first time, which surprised all of us.",
    "Please cancel my order and send the money back to the account it came from.",
    "An agent who reads only the first page of a report will sooner or later be wrong about the last one.",
    "The committee found that the figures had been copied from an older table without anybody checking them.",
    "Cheap, small, quick, and it breaks in a week.",
    "Nobody in the hall moved until the last note had faded.",
    "I paid twice for the same ticket and was told, politely, that this was my mistake.",
    (
        "The novel begins with a letter that is never sent and ends with an answer to it. Between the two lie forty "
        "years, three countries and a house by the sea, which the author describes so often and so well that by the "
        "end one could find the spare key. What happens matters less than who remembers it, and they disagree."
    ),
    (
        "We tested the device for two months in a kitchen, an office and a workshop. In the kitchen it was too loud, "
        "in the office nobody noticed it, and in the workshop it was buried under sawdust by the second week. The "
        "battery lasts about nine hours, not the fourteen that the box promises, and charging takes all night."
    ),
    (
        "According to the report, rain fell on 19 of 30 days, the river rose by 80 cm, and the lower meadows were "
        "under water for a week. Farmers moved their animals in time. The old bridge was closed, opened, and closed "
        "again; the mayor, asked when it would be repaired, said that this had been asked before."
    ),
    "So much for that.",
    "Is the second sentence true if the first one is?",
    "A child sleeps on a bench. Someone is resting outside.",
    "The museum is closed on Mondays. One can visit the museum every day of the week.",
    "ok thanks bye",
)
