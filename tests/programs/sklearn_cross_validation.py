# needs: sklearn
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score

if __name__ == "__main__":
    x, y = make_classification(400, random_state=0)
    print(cross_val_score(LogisticRegression(), x, y, cv=4, n_jobs=2).round(6).tolist())
    search = GridSearchCV(RandomForestClassifier(10, random_state=0), {"max_depth": [2, 4]}, n_jobs=2, cv=2)
    print(search.fit(x, y).best_params_)
