"""Words of the training dialogues: those whose letters are counted, things to have, and topics to decline."""

from __future__ import annotations


def _listed(*lines: str) -> list[str]:
    """The words or topics of all lines, which commas separate."""
    return [word for line in lines for word in line.split(", ")]


#: Words whose letters are counted.
COUNTED = _listed(
    "alphabet, apple, apricot, arithmetic, artichoke, asparagus, avocado, balloon, banana, bicycle, blackberry",
    "blueberry, book, bottle, broccoli, butter, butterfly, button, cabbage, calculator, carrot, cauliflower",
    "celeriac, celery, cheese, cherry, chocolate, coconut, coffee, committee, computer, cookie, cranberry",
    "crocodile, cucumber, door, elephant, engine, feather, fennel, flower, forest, garden, garlic, ginger",
    "giraffe, grapefruit, hammer, happiness, hello, hippopotamus, house, island, kangaroo, kettle, kitchen",
    "ladder, lemon, letter, lettuce, library, lighthouse, mango, melon, message, mississippi, mirror, mountain",
    "mushroom, necklace, notebook, number, ocean, onion, orange, paper, parrot, parsley, peach, peanut, pear",
    "pencil, penguin, pepper, piano, pineapple, planet, popcorn, potato, pumpkin, puzzle, rabbit, radish, rainbow",
    "raspberry, river, rocket, saddle, salad, school, scissors, spaghetti, spinach, spoon, squirrel, staircase",
    "strawberry, sugar, summer, sunflower, table, teapot, tomato, tower, train, tree, turnip, umbrella, vanilla",
    "village, violin, walnut, water, watermelon, window, winter, wood, yellow, yesterday, zebra, zucchini",
)

#: Words of that kind that never occur in training.
HELD_OUT = _listed(
    "barrel, beetroot, cinnamon, clarinet, eggplant, feature, gooseberry, lantern, nectarine, ribbon, terrible",
    "tractor",
)

#: Things that one can have.
THINGS = _listed(
    "apples, balls, bananas, books, bottles, boxes, cakes, cards, carrots, chairs, coins, cookies, cups, eggs",
    "flowers, letters, lemons, marbles, oranges, pears, pencils, plates, shells, spoons, stamps, stones, tickets",
    "toys, trees",
)

#: Things that one can ask about. The model declines all of these questions.
TOPICS = _listed(
    "Africa, Berlin, Canada, Einstein, France, India, Japan, London, Mars, Mozart, Napoleon, Paris, Python, Rome",
    "Shakespeare, Spain, a black hole, a bridge, a cat, a computer, a dog, a dragon, a guitar, a house, a horse",
    "a king, a neural network, a rainbow, a rocket, a robot, a storm, a tiger, a train, a volcano, art, bread",
    "breakfast, chess, climate, coffee, democracy, dinosaurs, electricity, evolution, football, friendship, fish",
    "gold, gravity, happiness, health, history, honey, law, life, light, love, magic, medicine, money, music",
    "my garden, my job, my mother, my friend, old books, philosophy, physics, pizza, poetry, politics, rain",
    "religion, sleep, snow, sport, stars, tea, the brain, the economy, the future, the internet, the moon",
    "the news, the ocean, the sea, the sun, the weather, the world, time, travel, trees, war, water, wine, winter",
    "your family",
)

#: Topics that never occur in training.
HELD_OUT_TOPICS = _listed(
    "Australia, Newton, a bicycle, a castle, birds, clouds, cooking, dreams, summer, the theatre",
)

TOPIC_QUESTIONS = (
    "What is {}?",
    "Who was {}?",
    "Tell me about {}.",
    "Tell me something about {}.",
    "Tell me a story about {}.",
    "Tell me a joke about {}.",
    "Write a poem about {}.",
    "Write a story about {}.",
    "Write a letter about {}.",
    "Write a song about {}.",
    "Write code for {}.",
    "Explain {}.",
    "Explain {} to me.",
    "Can you explain {}?",
    "Can you tell me about {}?",
    "Can you write about {}?",
    "Can you help me with {}?",
    "Do you like {}?",
    "Do you know {}?",
    "What do you know about {}?",
    "What do you think of {}?",
    "What is the meaning of {}?",
    "What is the history of {}?",
    "What is the color of {}?",
    "What is the capital of {}?",
    "What is the best thing about {}?",
    "How does {} work?",
    "How do I get to {}?",
    "How old is {}?",
    "How big is {}?",
    "How many people like {}?",
    "Where is {}?",
    "Where can I find {}?",
    "Why is {} important?",
    "Why do people like {}?",
    "When did {} begin?",
    "Who made {}?",
    "Who invented {}?",
    "Is {} good?",
    "Is {} bigger than {}?",
    "Which is better, {} or {}?",
    "Compare {} and {}.",
    "Describe {}.",
    "Draw {}.",
    "I want to talk about {}.",
    "I like {}.",
    "Give me a recipe for {}.",
    "Give me a list of facts about {}.",
    "Translate {} into French.",
    "What happened to {} in {year}?",
    "What was {} like in {year}?",
    "Who won in {year}?",
    "What is the weather today?",
    "What time is it?",
    "What day is it?",
    "Who is the president?",
    "Sing a song.",
    "Tell me a joke.",
    "Write a poem.",
    "Say something funny.",
)

SMALL_NUMBERS = _listed(
    "zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen, fifteen",
    "sixteen, seventeen, eighteen, nineteen",
)
TENS = _listed(
    "twenty, thirty, forty, fifty, sixty, seventy, eighty, ninety",
)
